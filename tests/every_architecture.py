"""Does every architecture of transformers take every method, or refuse it in our own words?

    python -m tests.every_architecture                         # all, on every core; about an hour
    python -m tests.every_architecture llama whisper           # some, printed and not stored
    python -m tests.every_architecture --again llama whisper   # some of a whole run, once more

Builds every class that `AutoModel` and the automatic classes with heads know, tiny and random, in
a process of its own, attaches every example of every method, and with each method's first example
runs and learns where inputs for it can be made, and on a third of the classes saves and loads.
`tests/every_architecture.json` holds what came out: how many specs run on each class, how often
which message refuses one, and what ends in an exception that is not ours. A run that was stopped
goes on where it was, and a method that is new since is examined on every class; `--anew` forgets
what runs before this one found.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

STORED = Path(__file__).with_suffix(".json")
STATE = Path(__file__).with_suffix(".jsonl")
"""What was found so far, a class a line; a later line counts."""

SECONDS, BYTES = 240, 6 * 2**30
"""What one class may take: seconds of a processor, however many share it, and memory."""

WAIT = 10 * SECONDS
"""How long a class is waited for, which may do nothing at all."""

HEADS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_CTC_MAPPING",
    "MODEL_FOR_MASKED_LM_MAPPING",
    "MODEL_MAPPING",
)
"""Of these mappings, the first that knows a config gives the class that is examined."""


def classes() -> Iterator[tuple[str, str, str]]:
    """(model type, name of the config class, name of the model class) of all that are examined."""
    from transformers.models.auto import configuration_auto, modeling_auto

    for model_type, config_name in configuration_auto.CONFIG_MAPPING_NAMES.items():
        heads = (vars(modeling_auto)[f"{head}_NAMES"].get(model_type) for head in HEADS)
        name = next((name for name in heads if name), None)
        if name is not None:
            yield model_type, config_name, name if isinstance(name, str) else name[0]


def examined(
    config_name: str, class_name: str, known: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The findings of one class, from a process of its own.

    known: earlier ones, to which those of further specs are added.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(
        target=_child, args=(there, config_name, class_name, known), daemon=True
    )
    process.start()
    there.close()
    findings: dict[str, Any] = {
        "name": class_name,
        "built": False,
        "note": f"no answer in {WAIT} s",
    }
    try:
        if here.poll(WAIT):
            findings = here.recv()
    except EOFError:
        process.join()
        late = process.exitcode == -signal.SIGXCPU
        findings["note"] = f"no answer in {SECONDS} s" if late else "the process was killed"
    process.kill()
    process.join()
    here.close()
    return findings


def _child(pipe: Any, config_name: str, class_name: str, known: dict[str, Any] | None) -> None:
    import transformers as hf

    from tests.every.examine import Findings, examine, short

    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    warnings.simplefilter("ignore")
    hf.logging.set_verbosity_error()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        earlier = None if known is None else Findings(**known)
        findings = examine(_named(class_name), _named(config_name), earlier)
    except Exception as error:
        findings = Findings(class_name, note=short(error))
    pipe.send(findings.as_dict())


def _named(name: str) -> Any:
    """A class of transformers, wherever the package shows it."""
    import transformers as hf
    from transformers.models.auto.auto_factory import getattribute_from_module

    return getattribute_from_module(hf, name)


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What is stored: counts, kinds of messages, and one line a class, in the order of names."""
    from tests.every.examine import message_kind

    results = sorted(results, key=lambda r: r["name"])
    built = [r for r in results if r["built"]]

    def kinds(field: str) -> dict[str, int]:
        messages = Counter(message_kind(m) for r in built for m in r[field].values())
        return dict(sorted(messages.items(), key=lambda pair: (-pair[1], pair[0])))

    def count(field: str) -> int:
        return sum(len(r[field]) for r in built)

    return {
        "classes": len(results),
        "built": len(built),
        "run": sum(r["runs"] for r in built),
        "with a stack": sum(bool(r["stacks"]) for r in built),
        "specs that work": count("works"),
        "specs refused": count("refused"),
        "specs refused after attach": count("late"),
        "specs on which the base fails by itself": count("base_fails"),
        "specs that crash": count("crashed"),
        "crashes": kinds("crashed"),
        "failures of the base by itself": kinds("base_fails"),
        "refusals after attach": kinds("late"),
        "refusals": kinds("refused"),
        "not built": {r["name"]: r["note"] for r in results if not r["built"]},
        "by class": {r["name"]: _of_class(r) for r in built},
    }


def _of_class(findings: dict[str, Any]) -> str:
    """One line on a class that was built."""
    refused = len(findings["refused"]) + len(findings["late"])
    words = [f"{name}:{depth}" for name, depth in findings["stacks"].items()]
    words += [f"works {len(findings['works'])} refused {refused}"]
    words += [
        f"{word} {len(findings[field])}"
        for field, word in (("base_fails", "fails alone"), ("crashed", "crashed"))
        if findings[field]
    ]
    return " ".join(words + ([] if findings["runs"] else ["(no inputs)"]))


def counts(result: dict[str, Any]) -> str:
    """The counts of a summary as one reads them: built, run, works, refused and why, crashed."""
    lines = [f"{name}: {value}" for name, value in result.items() if isinstance(value, int)]
    reasons = Counter(note.split(":")[0] for note in result["not built"].values())
    for title, kinds in (
        ("not built, by reason", reasons),
        ("refused, by reason", Counter(result["refusals"])),
        ("refused after attach, by reason", Counter(result["refusals after attach"])),
        ("the base fails by itself", Counter(result["failures of the base by itself"])),
        ("crashes", Counter(result["crashes"])),
    ):
        lines += [f"{title}: {'none' if not kinds else ''}".rstrip()]
        lines += [f"{number:>7} {kind}" for kind, number in kinds.most_common()]
    return "\n".join(lines)


def main() -> None:
    """Examine what was asked for, and store it where that is everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="model types or classes; all where none is named")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--anew", action="store_true", help="forget what an earlier run found")
    parser.add_argument("--again", action="store_true", help="and store what the named ones do now")
    arguments = parser.parse_args()
    if arguments.again and not STATE.exists():
        parser.error("no run has found anything here yet; run all classes first")
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is anybody's model
    import tests.every.examine  # before the processes are forked

    stores = arguments.again or not arguments.names
    if arguments.anew:
        STATE.unlink(missing_ok=True)
    todo = [
        (config, name)
        for model_type, config, name in classes()
        if not arguments.names or {model_type, name} & set(arguments.names)
    ]
    todo = list(dict.fromkeys(todo))
    random.Random(0).shuffle(todo)  # neighbours are alike: a stopped run has seen some of each kind
    known = _known() if stores else {}
    rest = [(*pair, None) for pair in todo if arguments.names or pair[1] not in known]
    if not arguments.names:
        specs = {repr(spec) for spec, _ in tests.every.examine.examples()}
        rest += [(*pair, known[pair[1]]) for pair in todo if _lacks(known.get(pair[1]), specs)]
    for number, findings in enumerate(_all_examined(rest, arguments.workers), 1):
        known[findings["name"]] = findings
        print(f"{number}/{len(rest)} {_line(findings)}", flush=True)
        if stores:
            with STATE.open("a") as file:
                file.write(json.dumps(findings) + "\n")
    result = summary(list(known.values()))
    if stores:
        STORED.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    else:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    print(counts(result))


def _lacks(findings: dict[str, Any] | None, specs: set[str]) -> bool:
    """Whether a class was built, and not examined under all of these specs."""
    from tests.every.examine import Findings

    return findings is not None and findings["built"] and not specs <= Findings(**findings).specs


def _all_examined(
    todo: list[tuple[str, str, dict[str, Any] | None]], workers: int
) -> Iterator[dict[str, Any]]:
    """The findings of many classes, as they come."""
    pool = ThreadPoolExecutor(workers)
    try:
        for future in as_completed([pool.submit(examined, *arguments) for arguments in todo]):
            yield future.result()
    finally:  # whoever stops the run does not wait for all the rest
        pool.shutdown(cancel_futures=True)


def _known() -> dict[str, dict[str, Any]]:
    """What earlier runs found of today's specs, by class."""
    from tests.every.examine import Findings, examples

    specs = {repr(spec) for spec, _ in examples()}
    lines = STATE.read_text().splitlines() if STATE.exists() else []
    found = (Findings(**json.loads(line)).of(specs) for line in lines)
    return {findings.name: findings.as_dict() for findings in found}


def _line(findings: dict[str, Any]) -> str:
    if not findings["built"]:
        return f"{findings['name']}: not built: {findings['note']}"
    fields = ("works", "refused", "late", "base_fails", "crashed")
    return f"{findings['name']}: {', '.join(f'{len(findings[f])} {f}' for f in fields)}"


if __name__ == "__main__":
    main()
