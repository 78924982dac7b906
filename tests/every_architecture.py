"""Does every architecture of transformers take every method, or refuse it in our own words?

    python -m tests.every_architecture                 # all, on every core; an hour and more
    python -m tests.every_architecture llama whisper   # some, printed and not stored

Builds every class that `AutoModel` and the automatic classes with heads know, tiny and random, in
a process of its own, attaches every example of every method, runs and learns where inputs for it
can be made, saves and loads. `tests/every_architecture.json` holds what came out: how many specs
run on each class, how often which message refuses one, and what ends in an exception that is not
ours. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

STORED = Path(__file__).with_suffix(".json")
STATE = Path(__file__).with_suffix(".jsonl")
SECONDS, BYTES = 240, 6 * 2**30
"""What one class may take."""

TOO_LONG = f"no answer in {SECONDS} s"

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


def examined(config_name: str, class_name: str) -> dict[str, Any]:
    """The findings of one class, from a process of its own."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(there, config_name, class_name))
    process.start()
    there.close()
    findings = {"name": class_name, "built": False, "note": TOO_LONG}
    try:
        if here.poll(SECONDS):
            findings = here.recv()
    except EOFError:
        findings["note"] = "the process was killed"
    process.kill()
    process.join()
    return findings


def _child(pipe: Any, config_name: str, class_name: str) -> None:
    import transformers as hf

    from tests.every.examine import Findings, examine

    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    warnings.simplefilter("ignore")
    hf.logging.set_verbosity_error()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        findings = examine(_named(class_name), _named(config_name))
    except Exception as error:
        findings = Findings(class_name, note=f"{type(error).__name__}: {error!s:.160}")
    pipe.send(findings.as_dict())


def _named(name: str) -> Any:
    """A class of transformers, wherever the package shows it."""
    import transformers as hf
    from transformers.models.auto.auto_factory import getattribute_from_module

    return getattribute_from_module(hf, name)


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What is stored: counts, kinds of messages, and one line a class."""
    from tests.every.examine import message_kind

    built = [r for r in results if r["built"]]
    crashes, refusals, late = Counter(), Counter(), Counter()
    for r in built:
        crashes.update(message_kind(m) for m in r["crashed"].values())
        refusals.update(message_kind(m) for m in r["refused"].values())
        late.update(message_kind(m) for m in r["late"].values())
    return {
        "classes": len(results),
        "built": len(built),
        "run": sum(r["runs"] for r in built),
        "with a stack": sum(bool(r["stacks"]) for r in built),
        "specs that work": sum(len(r["works"]) for r in built),
        "specs refused": sum(len(r["refused"]) for r in built),
        "specs refused after attach": sum(len(r["late"]) for r in built),
        "specs that crash": sum(len(r["crashed"]) for r in built),
        "crashes": dict(crashes.most_common()),
        "refusals after attach": dict(late.most_common()),
        "refusals": dict(refusals.most_common()),
        "not built": {r["name"]: r["note"] for r in results if not r["built"]},
        "by class": {
            r["name"]: " ".join(
                [
                    *(f"{name}:{depth}" for name, depth in r["stacks"].items()),
                    f"works {len(r['works'])} refused {len(r['refused']) + len(r['late'])}",
                    *([f"crashed {len(r['crashed'])}"] if r["crashed"] else []),
                    *([] if r["runs"] else ["(no inputs)"]),
                ]
            )
            for r in built
        },
    }


def main() -> None:
    """Examine what was asked for, and store it where that is everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="model types or classes; all where none is named")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--anew", action="store_true", help="forget what a stopped run found")
    arguments = parser.parse_args()
    if arguments.anew:
        STATE.unlink(missing_ok=True)
    import tests.every.examine  # noqa: F401  # before the processes are forked

    todo = [
        (config, name)
        for model_type, config, name in classes()
        if not arguments.names or {model_type, name} & set(arguments.names)
    ]
    random.Random(0).shuffle(todo)  # neighbours are alike: a stopped run has seen some of each kind
    known: dict[str, dict[str, Any]] = {}
    if not arguments.names and STATE.exists():
        known = {r["name"]: r for r in map(json.loads, STATE.read_text().splitlines())}
    with ThreadPoolExecutor(arguments.workers) as pool:
        rest = [pair for pair in dict.fromkeys(todo) if pair[1] not in known]
        running = [pool.submit(examined, *pair) for pair in rest]
        for number, future in enumerate(as_completed(running), 1):
            findings = future.result()
            known[findings["name"]] = findings
            print(f"{number}/{len(rest)} {_line(findings)}", flush=True)
            if not arguments.names and findings.get("note") != TOO_LONG:
                with STATE.open("a") as file:
                    file.write(json.dumps(findings) + "\n")
    result = summary(list(known.values()))
    if arguments.names:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        STORED.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        STATE.unlink(missing_ok=True)


def _line(findings: dict[str, Any]) -> str:
    if not findings["built"]:
        return f"{findings['name']}: not built: {findings['note']}"
    counts = ", ".join(f"{len(findings[k])} {k}" for k in ("works", "refused", "late", "crashed"))
    return f"{findings['name']}: {counts}"


if __name__ == "__main__":
    main()
