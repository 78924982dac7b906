"""Write the generated parts of the documents, or with `--check` compare them with the files.

Generated are docs/methods.md, docs/claims.md, docs/tasks.md, the options of the commands
(src/inlay_cli/flags.json), and in README.md the parts between markers such as `<!-- methods -->`
and `<!-- /methods -->`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.docs import claims, methods, speed, tasks
from inlay_cli import fields, flags
from inlay_cli.catalogue import catalogue

ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write the documents below a folder, or check them; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say what is out of date")
    check = parser.parse_args(arguments).check
    texts = documents(root)
    outdated = [path for path, text in texts.items() if _read(path) != text]
    if check:
        for path in outdated:
            print(f"{path.relative_to(root)} is out of date; run: make docs")
        return 1 if outdated else 0
    for path in outdated:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path], "utf-8")
        print(f"wrote {path.relative_to(root)}")
    return 0


def documents(root: Path) -> dict[Path, str]:
    """What every generated document should say."""
    readme, entries = root / "README.md", catalogue()
    sections = {"methods": methods.summary(entries), "bench": speed.section(root)}
    return {
        readme: fill(readme.read_text("utf-8"), sections),
        root / "docs" / "methods.md": methods.page(entries),
        root / "docs" / "claims.md": claims.page(root),
        root / "docs" / "tasks.md": tasks.page(root / tasks.FOLDER),
        root / "src" / "inlay_cli" / flags.FILE.name: fields.flags_file(),
    }


def fill(text: str, sections: Mapping[str, str]) -> str:
    """A text with the part between each pair of markers replaced."""
    for name, section in sections.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not begin or not end:
            raise SystemExit(f"README.md has no section <!-- {name} --> … <!-- /{name} -->")
        text = before + begin + section + end + after
    return text


def _read(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
