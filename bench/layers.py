"""What adapters, their fusion and hybrids cost: `python -m bench.layers`.

A training step beside full fine-tuning and a pass for inference beside the bare base: of Pfeiffer
adapters in the upper layers alone, for one task and for several tasks on one input (Rücklé et al.,
EMNLP 2021); of a fusion of eight adapters, pruned to two; and of every hybrid. Times are
wall-clock, in turns, as ratios within a round. Then the memory of a step of AdaMix, with and
without the consistency pass. The result is stored in bench/layers.json.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

import inlay
from bench.base import LENGTH, ROWS, batch, device, machine, quiet
from bench.live import live
from bench.timing import Times, take_turns
from inlay import (
    MAM,
    S4,
    AdaLoRA,
    AdaMix,
    AdapterDrop,
    Compacter,
    Fusion,
    LoRA,
    Pfeiffer,
    UniPELT,
    Where,
)
from inlay.core.method import Spec
from inlay.hub import fetch_model
from inlay.training.loop.objective import consistency

MODELS = ("minilm", "smollm2")
TASKS = (2, 4, 8, 16)
SHARES = (0.0, 0.25, 0.5)
"""Fractions of the layers, from the input, that have no adapter."""

ADAPTERS, KEPT = 8, 2
"""How many adapters a fusion has, and how many are left when it is pruned."""


def fusion(count: int = ADAPTERS) -> Fusion:
    """A fusion of some Pfeiffer adapters."""
    names = tuple(f"adapter-{number}" for number in range(count))
    return Fusion(adapters=(Pfeiffer(),) * count, names=names)


METHODS: dict[str, Spec] = {
    "LoRA": LoRA(),
    "Pfeiffer": Pfeiffer(),
    "Compacter": Compacter(bottleneck=16),
    "AdaMix": AdaMix(),
    "AdaMix, one pass": AdaMix(consistency_weight=0.0),
    f"Fusion of {ADAPTERS}": fusion(),
    "AdapterDrop": AdapterDrop(),
    "AdaLoRA": AdaLoRA(),
    "MAM": MAM(length=16, bottleneck=16, scale=2.0),
    "UniPELT": UniPELT(),
    "S4": S4(),
}
"""At their defaults; a bottleneck of Compacter that its terms divide in both bases; MAM as the
authors use it for language understanding."""

PAPER = {
    "training step of adapters against all weights": "up to 60 % faster",
    "inference of adapters against the base": "94-96 % of its speed",
    "8 tasks on one input without 5 of 12 adapters": "39 % faster",
    "2 to 16 tasks on one input without 5 of 12 adapters": "21-42 % faster",
    "training step of robust AdapterDrop": "26 % faster",
    "fusion of 8 against all weights": "training step 47 %, inference 62 % slower",
    "fusion of 8 pruned to 2, inference": "68 % faster",
    "training time of Compacter++ against all weights": "26.5 % less",
}


def base(name: str) -> Any:
    """A new backbone in fp32."""
    model = AutoModel.from_pretrained(fetch_model(name), dtype=torch.float32)
    return model.to(device())


def twin(model: Any) -> Any:
    """A copy of a base with modules of its own and the same tensors as parameters."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def inputs(model: Any, rows: int = ROWS) -> dict[str, Tensor]:
    """The batch that everything is measured with, in tokens that the model knows."""
    texts = batch(rows)
    ids, mask = texts.ids[:, :LENGTH], texts.mask[:, :LENGTH]
    return {"input_ids": ids % model.config.vocab_size, "attention_mask": mask}


def upper(model: Any, share: float) -> Pfeiffer:
    """Pfeiffer adapters in the layers above the lowest share of them."""
    depth = model.config.num_hidden_layers
    return Pfeiffer(at=Where(("block",), tuple(range(round(share * depth), depth))))


def step(model: Any, handle: inlay.Inlay | None = None) -> Callable[[], None]:
    """A training step on the mean of the last states, of an inlay or else of all weights.

    It has all that a step of `fit` has: the passes that a method asks for, which are held together
    by the squared distance of their states, its penalty, and what follows the optimiser.
    """
    parameters = list(model.parameters() if handle is None else handle.parameters())
    passes = 1 if handle is None else max(method.passes for method in handle.spec.methods)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    texts = inputs(model)

    def states() -> Tensor:
        last: Tensor = model(**texts).last_hidden_state
        return last

    def run() -> None:
        first = states()
        loss = first.mean()
        if handle is not None:
            for _ in range(passes - 1):
                distance = (first - states()).square().mean()
                loss = loss + consistency(handle.spec, distance)
            penalty = handle.penalty()
            loss = loss if penalty is None else loss + penalty
        loss.backward()
        optimizer.step()
        if handle is not None:
            handle.after_step(0.5)
        optimizer.zero_grad()

    return run


def trained(frozen: Any, spec: Spec) -> Callable[[], None]:
    """A training step of a method on a twin of a base."""
    model = twin(frozen)
    return step(model, inlay.attach(model, spec).train())


def used(frozen: Any, spec: Spec | None) -> Callable[[], None]:
    """A pass for inference with a method on a twin of a base, as its file has it; or without."""
    model, texts = twin(frozen).eval(), inputs(frozen)
    if spec is not None:
        with TemporaryDirectory() as folder:
            path = inlay.attach(model, spec, name="new").save(Path(folder) / "new.inlay")
            inlay.attached(model)["new"].detach()
            inlay.load(model, path).eval()

    def run() -> None:
        model(**texts)

    return run


def training(name: str, rounds: int) -> dict[str, float]:
    """Seconds of a step with adapters as ratios to those of full fine-tuning."""
    frozen = base(name)
    runs = {"all weights": step(base(name))}
    for share in SHARES:
        runs[f"{share:.0%} dropped"] = trained(frozen, upper(frozen, share))
    return ratios(take_turns(runs, rounds), "all weights")


@torch.no_grad()
def inference(name: str, rounds: int) -> dict[str, float]:
    """Seconds of a pass as ratios to the base's."""
    frozen = base(name)
    runs = {"the base": used(frozen, None)}
    for share in SHARES:
        runs[f"{share:.0%} dropped"] = used(frozen, upper(frozen, share))
    return ratios(take_turns(runs, rounds), "the base")


def methods_training(name: str, rounds: int) -> dict[str, float]:
    """Seconds of a step of every method as ratios to those of full fine-tuning."""
    frozen = base(name)
    runs = {"all weights": step(base(name))}
    runs |= {method: trained(frozen, spec) for method, spec in METHODS.items()}
    return ratios(take_turns(runs, rounds), "all weights")


@torch.no_grad()
def methods_inference(name: str, rounds: int) -> dict[str, float]:
    """Seconds of a pass with every method, not merged, as ratios to the base's."""
    frozen = base(name)
    runs = {"the base": used(frozen, None)}
    runs |= {method: used(frozen, spec) for method, spec in METHODS.items()}
    return ratios(take_turns(runs, rounds), "the base")


@torch.no_grad()
def pruned(name: str, rounds: int) -> dict[str, float]:
    """Seconds of a pass with a fusion of fewer adapters as ratios to one of all."""
    frozen, whole = base(name), f"{ADAPTERS} adapters"
    runs = {whole: used(frozen, fusion()), "the base": used(frozen, None)}
    runs[f"{KEPT} adapters"] = used(frozen, fusion(KEPT))
    return ratios(take_turns(runs, rounds), whole)


def mixture_memory(name: str) -> dict[str, float]:
    """MiB of the tensors alive at once in a step of AdaMix, beyond those alive before it."""
    frozen = base(name)
    numbers: dict[str, float] = {}
    for passes, weight in (("two passes", 1.0), ("one pass", 0.0)):
        run = trained(frozen, AdaMix(consistency_weight=weight))
        run()  # the optimiser's moments are alive from the first step on
        numbers[passes] = round(live(run), 1)
    numbers["two passes / one pass"] = round(numbers["two passes"] / numbers["one pass"], 3)
    return numbers


@torch.no_grad()
def tasks(name: str, rounds: int) -> dict[str, float]:
    """Seconds for several tasks on one input as ratios to one pass for each, nothing dropped."""
    results: dict[str, float] = {}
    models = {}
    for share in SHARES:
        models[share] = base(name).eval()
        for number in range(max(TASKS)):
            inlay.attach(models[share], upper(models[share], share), name=f"task-{number}")
    texts = inputs(models[0.0], 2)
    for count in TASKS:
        names = [f"task-{number}" for number in range(count)]

        def each(names: list[str] = names) -> None:
            for task in names:
                with inlay.rows(models[0.0], [task] * 2):
                    models[0.0](**texts)

        runs: dict[str, Callable[[], object]] = {"each alone": each}
        for share in SHARES:

            def together(share: float = share, names: list[str] = names) -> None:
                inlay.ask_all(models[share], names, **texts)

            runs[f"{count} tasks, {share:.0%} dropped"] = together
        results |= ratios(take_turns(runs, rounds), "each alone")
    return results


def ratios(times: Times, reference: str) -> dict[str, float]:
    """The median ratio within a round of every run to one of them."""
    return {
        name: round(median(a / b for a, b in times.pairs(name, reference)), 3)
        for name in times.seconds
        if name != reference
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"some of {MODELS} (all)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("layers.json"))
    options = parser.parse_args(arguments)
    quiet()
    results: dict[str, Any] = {
        "machine": machine(("torch", "transformers")),
        "rows": ROWS,
        "paper": PAPER,
    }
    for name in options.models or MODELS:
        results[name] = {
            "training step / all weights": training(name, options.rounds),
            "inference / the base": inference(name, options.rounds),
            "tasks on one input / each alone": tasks(name, options.rounds),
            "fusion pruned / fusion of 8, inference": pruned(name, options.rounds),
            "training step of every method / all weights": methods_training(name, options.rounds),
            "inference of every method / the base": methods_inference(name, options.rounds),
            "AdaMix, MiB of a step": mixture_memory(name),
        }
        print(json.dumps({name: results[name]}, indent=1), flush=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
