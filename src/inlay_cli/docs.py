"""Write the generated parts of the documents, or with `--check` say whether they are up to date.

    python -m inlay_cli.docs [--check]

Generated are `docs/methods.md`, the options of the commands (`flags.json`), and in README.md what
stands between markers such as `<!-- methods -->` and `<!-- /methods -->`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from inlay_cli import fields, flags
from inlay_cli.catalogue import Entry, catalogue

ROOT = Path(__file__).parents[2]
BENCH = Path("bench") / "results.json"


def main() -> int:
    """Write, or check; returns the exit code."""
    check = "--check" in sys.argv[1:]
    readme = ROOT / "README.md"
    wanted = {
        readme: _filled(readme.read_text("utf-8")),
        ROOT / "docs" / "methods.md": _pages(catalogue()),
        ROOT / "src" / "inlay_cli" / flags.FILE.name: fields.stored(),
    }
    stale = [path for path, text in wanted.items() if _old(path) != text]
    if check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what would be generated; run: make docs")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], "utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


def _old(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _filled(text: str) -> str:
    for name, made in (("methods", _table(catalogue())), ("bench", _measured())):
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not begin or not end:
            raise SystemExit(f"README.md has no section <!-- {name} --> … <!-- /{name} -->")
        text = before + begin + made + end + after
    return text


def _table(entries: tuple[Entry, ...]) -> str:
    rows = [
        f"| [`{one.name}`](docs/methods.md#{one.name.lower()}) | {_cell(one.equation)} "
        f"| {one.paper} | {_yes(one.merges)} | {_yes(one.identity)} |"
        for one in entries
    ]
    head = ["| method | what it computes | paper | merges | starts as the base |"]
    return "\n".join([*head, "|---|---|---|---|---|", *rows]) + "\n"


def _pages(entries: tuple[Entry, ...]) -> str:
    parts = ["# Methods\n\nGenerated from `src/inlay/methods/` by `make docs`.\n"]
    for one in entries:
        rows = [f"| `{f.name}` | `{_cell(f.default)}` | {_cell(f.about)} |" for f in one.fields]
        table = "\n".join(["| field | default | meaning |", "|---|---|---|", *rows])
        facts = (
            f"Way in: {one.port or '–'}. Folds into weights: {_yes(one.merges) or 'no'}. "
            f"Starts as the base: {_yes(one.identity) or 'no'}."
        )
        parts.append(f"## {one.name}\n\n{one.line}\n\n{one.about}\n\n{table}\n\n{facts}\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _yes(value: bool | None) -> str:
    return "yes" if value else ""


def _measured() -> str:
    path = ROOT / BENCH
    if not path.exists():
        return f"Not measured in this copy yet: `make bench` measures and writes `{BENCH}`.\n"
    return measured(json.loads(path.read_text("utf-8")))


def measured(results: dict[str, Any]) -> str:
    """The results of a benchmark as Markdown: where it ran, and one line a comparison."""
    on = results["machine"]
    versions = ", ".join(f"{name} {on[name]}" for name in ("torch", "transformers", "peft"))
    lines = [
        f"SmolLM2-135M in bf16, measured by `make bench` on {on['cores']} cores ({on['device']}) "
        f"with {versions} on {results['date']}{', a quick run' if results['quick'] else ''}. "
        "A ratio is the median over rounds in which both took turns.\n",
        "| what | inlay | beside | | unit | ratio | goal |",
        "|---|---:|---|---:|---|---:|---:|",
    ]
    for row in results["rows"]:
        numbers = f"{row['ours']:.4g} | {row['beside']} | {row['other']:.4g} | {row['unit']}"
        lines.append(f"| {row['what']} | {numbers} | {row['ratio']:.2f} | {_goal(row)} |")
    return "\n".join(lines) + "\n"


def _goal(row: dict[str, Any]) -> str:
    if row["at_most"] is not None:
        return f"≤ {row['at_most']:.2f}"
    return "" if row["at_least"] is None else f"≥ {row['at_least']:.2f}"


if __name__ == "__main__":
    sys.exit(main())
