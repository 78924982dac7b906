"""Write the generated parts of the documents, or with `--check` say whether they are up to date.

    python -m inlay_cli.docs [--check]

Generated are `docs/methods.md`, `docs/claims.md`, `docs/tasks.md`, the options of the commands
(`flags.json`), and in README.md what stands between markers such as `<!-- methods -->` and
`<!-- /methods -->`.
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
CLAIMS = Path("bench") / "claims" / "results"
TASKS = Path("bench") / "cells"


def main() -> int:
    """Write, or check; returns the exit code."""
    check = "--check" in sys.argv[1:]
    readme = ROOT / "README.md"
    wanted = {
        readme: _filled(readme.read_text("utf-8")),
        ROOT / "docs" / "methods.md": _pages(catalogue()),
        ROOT / "docs" / "claims.md": _claims(),
        ROOT / "docs" / "tasks.md": tasks_page(ROOT / TASKS),
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
        rows = [
            f"| `{f.name}` | `{_cell(f.default)}` | {_cell(f.about)} | {_cell(f.source)} |"
            for f in one.fields
        ]
        rate, source = one.rate
        rows.append(f"| learning rate | `{rate:g}` | see `training.lr` | {_cell(source)} |")
        head = ["| field | default | meaning | where the default comes from |", "|---|---|---|---|"]
        table = "\n".join([*head, *rows])
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
    runs = results["runs"]
    when = f"on {runs[-1]}" if len(runs) == 1 else f"in {len(runs)} runs, the last on {runs[-1]}"
    lines = [
        "SmolLM2-135M in bf16 (or fp32, where a row says so: what a processor without products in "
        f"bf16 runs), measured by `make bench` on {on['cores']} cores ({on['device']}) "
        f"with {versions} {when}{', quickly' if results['quick'] else ''}. "
        "A ratio is the median over rounds in which both took turns.\n",
        "| what | inlay | beside | | unit | ratio | goal |",
        "|---|---:|---|---:|---|---:|---:|",
    ]
    for row in results["rows"]:
        numbers = f"{row['ours']:.4g} | {row['beside']} | {row['other']:.4g} | {row['unit']}"
        lines.append(f"| {row['what']} | {numbers} | {row['ratio']:.2f} | {_goal(row)} |")
    return "\n".join(lines) + "\n"


def _claims() -> str:
    stored = [json.loads(p.read_text("utf-8")) for p in sorted((ROOT / CLAIMS).glob("*.json"))]
    return claimed(stored)


def claimed(stored: list[dict[str, Any]]) -> str:
    """The results of the claims as Markdown: a table, then what each says and was measured by."""
    parts = [
        "# Claims\n\nWhat papers claim, measured on small models: generated by `make docs` from "
        "`bench/claims/results/`, which `inlay reproduce` writes. A claim holds where the sign is "
        "right in the mean and in two thirds of the seeds; nothing is judged with fewer than "
        "three.\n"
    ]
    rows = [
        f"| [`{one['claim']}`](#{one['claim']}) | {one['paper']}, section {one['section']} "
        f"| {_cell(one['figures'])} | {_numbers(one)} | {_held(one)} |"
        for one in stored
    ]
    head = ["| claim | paper | the paper's figures | ours | held |", "|---|---|---|---|---|"]
    parts.append("\n".join([*head, *rows]) + "\n")
    for one in stored:
        on = one["machine"]
        settings = ", ".join(f"{name} {value}" for name, value in one["settings"].items())
        margins = ", ".join(f"{margin:.3g}" for margin in one["margins"])
        lines = [
            f"## {one['claim']}\n",
            f"{one['sentence']} ({one['paper']}, section {one['section']})\n",
            f"![{one['claim']}](../{(CLAIMS / one['claim']).as_posix()}.svg)\n",
            f"Held: {_held(one)}. How far each of {len(one['seeds'])} seeds speaks for it: "
            f"{margins}. Measured on {one['date']}, {one['minutes_per_seed']:.1f} minutes a seed "
            f"on {on['device']}, {on['threads']} threads, torch {on['torch']}, "
            f"transformers {on['transformers']}.\n",
            f"Settings: {settings}.\n",
            *(f"Tried: {_cell(line)}\n" for line in one["tried"]),
        ]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _held(one: dict[str, Any]) -> str:
    return {True: "yes", False: "no", None: "not judged"}[one["held"]]


def _numbers(one: dict[str, Any]) -> str:
    return ", ".join(
        f"{what} {one['mean'][name]:.3g} ± {one['sd'][name]:.2g}"
        for name, what in one["told"].items()
    )


def tasks_page(folder: Path) -> str:
    """What was measured of each task on each base: one table, and why a cell is empty."""
    stored = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    page = (
        "# Tasks\n\nEvery task on a decoder, an encoder and an encoder–decoder: generated by "
        "`make docs` from `bench/cells/`, which `python -m bench.tasks` writes.\n"
    )
    if not stored:
        return f"{page}\nNot measured in this copy yet.\n"
    methods, reasons = list(stored[0]["methods"]), list[str]()
    rows = [_task_row(one, base, methods, reasons) for one in stored for base in one["tasks"]]
    names = ["data", "base", "metric", "rows", "commonest answer", "untouched", *methods]
    on = stored[0]["machine"]
    parts = [
        page,
        f"A trained cell learns for {stored[0]['seconds']:g} seconds of one processor's time "
        f"({on['device']}, torch {on['torch']}, transformers {on['transformers']}), in batches of "
        f"{stored[0]['batch_size']} at the method's own defaults and seed {stored[0]['seed']}; in "
        "brackets, how many steps that was. So a cell says what a method makes of this little "
        "time, not what it could reach: its steps are few where they are dear. *Rows* is how many "
        "held-out rows were asked, *commonest answer* what giving all of them the training rows' "
        "commonest one scores.\n",
        "\n".join(f"| {' | '.join(row)} |" for row in [names, ["---"] * len(names), *rows]) + "\n",
        *(f"{number}. {reason}\n" for number, reason in enumerate(reasons, 1)),
    ]
    return "\n".join(parts)


def _task_row(one: dict[str, Any], base: str, methods: list[str], reasons: list[str]) -> list[str]:
    cells = [one["cells"].get(f"{base}/{name}", {}) for name in ("untouched", *methods)]
    metric = next((cell["metric"] for cell in cells if "metric" in cell), "")
    commonest = f"{cells[0]['commonest']:.3f}" if "commonest" in cells[0] else ""
    shown = [_task_cell(cell, reasons) for cell in cells]
    rows = str(cells[0].get("rows", ""))
    return [one["set"], base, metric, rows, commonest, *shown]


def _task_cell(cell: dict[str, Any], reasons: list[str]) -> str:
    """A score and its steps; a number that points at the reason where there is none."""
    said = cell.get("refused") or cell.get("how")
    if said is not None and said not in reasons:
        reasons.append(said)
    note = "" if said is None else f" [{reasons.index(said) + 1}]"
    if "score" not in cell:
        return f"–{note}" if note else ""
    steps = f" ({cell['steps']})" if "steps" in cell else ""
    return f"{cell['score']:.3f}{steps}{note}"


def _goal(row: dict[str, Any]) -> str:
    if row["at_most"] is not None:
        return f"≤ {row['at_most']:.2f}"
    return "" if row["at_least"] is None else f"≥ {row['at_least']:.2f}"


if __name__ == "__main__":
    sys.exit(main())
