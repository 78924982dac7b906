"""prepare: let methods look at the base and at data, once, before their inlay is attached.

    prepared = prepare(model, spec, task, data)
    handle = attach(model, spec, prepared=prepared)
    fit(model, handle, task, data, prepared=prepared)

Fisher information, activation statistics and priming are computed so. The base runs in evaluation
mode, without other inlays, and is afterwards as it was before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from rich.console import Console
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from inlay.architectures.resolve import resolve
from inlay.core.method import Method, Spec, sum_of
from inlay.core.modes import evaluating
from inlay.data.dataset import Example
from inlay.errors import TrainingError
from inlay.files.atomic import write_whole
from inlay.files.ordered import to_bytes
from inlay.handle import Inlay, attach
from inlay.handle import rows as inlay_rows
from inlay.runtime.install import Prepared, sites_of
from inlay.tasks import Row, Task
from inlay.training.loop import rng
from inlay.training.loop.batches import shuffled_batches
from inlay.training.loop.identity import describe_base, describe_method, describe_rows
from inlay.training.loop.launch import processes
from inlay.training.loop.progress import print_line

SCRATCH = "inlay-preparation"
"""The name of the inlay that holds the task's heads during the preparation."""

FILE = "prepared.safetensors"
"""The file, in the folder of a run, with what was prepared."""


def prepare(
    model: PreTrainedModel,
    spec: Spec,
    task: Task,
    data: Sequence[Example],
    *,
    batch_size: int = 16,
    batches: int | None = None,
    seed: int = 0,
    folder: Path | None = None,
    resume: bool = True,
    console: Console | None = None,
) -> Prepared:
    """Run `Method.prepare` for every method of a spec that has one.

    Args:
        model: the base, on its device.
        spec: what will be attached. Heads of it that need no preparation are attached meanwhile,
            untrained, since the task reads them. A preparation may train them.
        task: bound to the model, without virtual tokens in its template.
        data: training examples.
        batch_size: rows in a batch, for methods that do not say so themselves.
        batches: how many batches at most, drawn from the data; None for all rows once.
        seed: of the order of the rows and of everything that is drawn.
        folder: where the result is kept; None keeps it nowhere.
        resume: take the folder's result, where it is of the same base, spec, task and data.
        console: where a line says what was done; None for the error stream.

    Returns, by the number of the method in the expanded spec, its tensors by name, on the CPU.
    Empty where no method needs preparation.

    Raises TrainingError where there are no rows, or where the template has virtual tokens, which
    the bare base cannot read.
    """
    expanded = spec.expand(resolve(model).sites)
    if not needs_preparation(model, spec):
        return {}
    if task.virtual_tokens:
        raise TrainingError(
            "a preparation runs the bare base, which reads no virtual tokens; take them out of "
            "the template"
        )
    rows = task.encode_all(data)
    if not rows:
        raise TrainingError("a preparation looks at training rows, and there are none; give some")
    run = {
        "base": describe_base(model),
        "method": describe_method(expanded),
        "task": task.describe(),
        "data": describe_rows(rows),
        "batches": [batch_size, batches, seed],
    }
    identity = json.dumps(run, sort_keys=True)
    main = processes().is_main_process
    prepared = None
    if folder is not None and resume and main:
        prepared = _read(folder, identity)
    prepared = _from_main_process(prepared)
    if prepared is not None:
        return prepared
    console = (console or Console(stderr=True)) if main else Console(quiet=True)
    heads = [m for m in expanded.methods if m.has_head and not m.needs_preparation]
    with _unchanged(model), rng.preserved():
        rng.seed(seed)
        scratch = attach(model, sum_of(heads), name=SCRATCH)
        try:

            def draw(method: Method) -> list[Callable[[], Tensor]]:
                count = method.preparation_rows or batch_size
                return _losses(model, task, _draw(rows, count, batches, seed))

            prepared = _from_main_process(_prepare(expanded, scratch, draw, console))
        finally:
            scratch.detach()
    assert prepared is not None
    if folder is not None and main:
        _write(folder, identity, prepared)
    return prepared


def needs_preparation(model: PreTrainedModel, spec: Spec) -> bool:
    """Whether `attach` needs what `prepare` returns for this spec and base."""
    return any(m.needs_preparation for m in spec.expand(resolve(model).sites).methods)


def _from_main_process(prepared: Prepared | None) -> Prepared | None:
    """What the main process has, in every process."""
    if processes().num_processes > 1:
        (prepared,) = broadcast_object_list([prepared])
    return prepared


@contextmanager
def _unchanged(model: PreTrainedModel) -> Iterator[None]:
    """Put back afterwards which parameters require gradients, and their gradients."""
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        yield
    finally:
        for parameter, requires_grad, gradient in before:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


def _draw(rows: Sequence[Row], batch_size: int, batches: int | None, seed: int) -> list[list[Row]]:
    """The batches that are looked at."""
    costs = [len(row) for row in rows]
    numbers = shuffled_batches(costs, rows=batch_size, tokens=None, seed=seed, epoch=0)[:batches]
    return [[rows[number] for number in batch] for batch in numbers]


def _losses(
    model: PreTrainedModel, task: Task, batches: Sequence[Sequence[Row]]
) -> list[Callable[[], Tensor]]:
    """For every batch a call that runs it and returns its mean loss."""

    def call(rows: Sequence[Row]) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            batch = task.collate(rows).to(model.device)
            total, count = task.loss(task.outputs(model, batch), batch)
            return total / max(1, count)

        return loss

    return [call(rows) for rows in batches]


def _prepare(
    spec: Spec,
    scratch: Inlay,
    draw: Callable[[Method], Sequence[Callable[[], Tensor]]],
    console: Console,
) -> Prepared:
    """Run the preparations one after the other, and say what each did.

    draw: the losses of the batches that a method looks at.
    """
    prepared: dict[int, dict[str, Tensor]] = {}
    model = scratch.model
    for index, method in enumerate(spec.methods):
        if not method.needs_preparation:
            continue
        begun = time.monotonic()
        sites, losses = sites_of(scratch.chart, method), draw(method)
        with evaluating(model), torch.enable_grad(), inlay_rows(model, [SCRATCH]):
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            for parameter in scratch.parameters():
                parameter.requires_grad_(True)
            tensors = method.prepare(model, sites, losses)
        prepared[index] = {k: t.detach().cpu().contiguous() for k, t in tensors.items()}
        summary = _summary(method, prepared[index], len(losses), time.monotonic() - begun)
        print_line(console, summary)
    return prepared


def _summary(method: Method, tensors: dict[str, Tensor], batches: int, seconds: float) -> str:
    values = sum(tensor.numel() for tensor in tensors.values())
    return (
        f"prepared {method!r}: {values:,} values in {len(tensors)} tensors, from up to {batches} "
        f"batches, in {seconds:.1f} s"
    )


def _write(folder: Path, identity: str, prepared: Prepared) -> None:
    tensors = {
        f"{index}/{name}": tensor
        for index, named in prepared.items()
        for name, tensor in named.items()
    }
    indices = json.dumps([*prepared])
    data = to_bytes(tensors, {"identity": identity, "methods": indices})
    write_whole(folder / FILE, data)


def _read(folder: Path, identity: str) -> Prepared | None:
    """What the folder holds, if that is of the same base, spec, task and data; else None."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("identity") != identity:
                return None
            prepared: dict[int, dict[str, Tensor]] = {
                index: {} for index in json.loads(header["methods"])
            }
            for key in file.keys():  # noqa: SIM118
                index, _, name = key.partition("/")
                prepared[int(index)][name] = file.get_tensor(key)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise TrainingError(
            f"{path} is damaged ({error!s:.100}); delete it to prepare anew"
        ) from None
    return prepared
