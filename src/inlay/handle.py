"""attach, load, rows and the handle that they return: the face of an inlay.

While anything is attached the base has one more child, `model.inlays`. The base's own classes,
parameter names and values stay as they are; `detach` takes the child and every hook away again.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inlay import merge
from inlay.architectures.base_head import never_trained, never_trained_otherwise
from inlay.architectures.chart import Chart
from inlay.architectures.paths import CHILD
from inlay.architectures.resolve import require_model, resolve
from inlay.core.method import ParameterGroup, Placed, Spec, sum_of
from inlay.core.piece import PromptVectors
from inlay.core.piece_set import PieceSet
from inlay.core.quantised import require_gradients
from inlay.errors import InlayError, NamingError, SpecError
from inlay.files import format as file_format
from inlay.files.fingerprint import check_base, check_tokenizer
from inlay.files.usage import Usage
from inlay.methods.base_head import with_base_head
from inlay.runtime.container import Container, changing, container_of
from inlay.runtime.install import (
    Prepared,
    build,
    create_container,
    install,
    remove_container,
    uninstall,
)
from inlay.runtime.reminder import Reminder
from inlay.runtime.routing import Names, Request


class Inlay:
    """A handle on all pieces of one attached spec.

    It is a view: the pieces are part of the model, and every handle of the same inlay is equal.

    model: the base. name: how `rows` calls it.
    """

    def __init__(self, model: PreTrainedModel, name: str, pieces: PieceSet, chart: Chart):
        self.model = model
        self.name = name
        self.chart = chart
        self._pieces = pieces

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Inlay) and self._pieces is other._pieces

    def __hash__(self) -> int:
        return id(self._pieces)

    @property
    def spec(self) -> Spec:
        """What was attached."""
        return self._pieces.spec

    @property
    def attached(self) -> bool:
        """Whether it is part of the model."""
        container = container_of(self.model)
        return (
            container is not None
            and self.name in container.sets
            and container.pieces(self.name) is self._pieces
        )

    @property
    def enabled(self) -> bool:
        """Whether it acts; may be set. A disabled inlay stays where it is and changes nothing."""
        return self._container().routing.enabled[self.name]

    @enabled.setter
    def enabled(self, acts: bool) -> None:
        self._container().routing.enable(self.name, bool(acts))

    @property
    def placed(self) -> tuple[Placed, ...]:
        """Every piece, with its site and its method."""
        return self._pieces.placed

    @property
    def virtual_tokens(self) -> int:
        """How many virtual tokens it has, for a template to place."""
        return self._pieces.virtual_tokens()

    @property
    def first_virtual_id(self) -> int:
        """V, the id of the first virtual token."""
        return self.chart.vocabulary

    @property
    def prompt_length(self) -> int:
        """How many positions it puts before the text of one stack, at most."""
        lengths: dict[str, int] = {}
        for placed in self.placed:
            if isinstance(placed.piece, PromptVectors):
                stack = placed.site.stack
                lengths[stack] = lengths.get(stack, 0) + placed.piece.length
        return max(lengths.values(), default=0)

    @property
    def text_start(self) -> int:
        """At which position the text of a row begins, at the latest: after prompts and prefixes."""
        name = (self.name,)
        stacks = self._container().stacks
        return max(hooks.prompts.length(name) + hooks.state.shift(name) for hooks in stacks)

    @property
    def prompts_run_alone(self) -> bool:
        """Whether the base computes the same for its prompts whatever text follows them."""
        return self._container().stacks[0].prefix is not None

    def prompt_keys_and_values(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The keys and values of its prompts, by the name of their site, each `[1, H, P, K]`.

        To be called where `prompts_run_alone`.
        """
        runner = self._container().stacks[0].prefix
        assert runner is not None
        return runner.keys_and_values((self.name,))

    def recompute_shared(self) -> None:
        """Recompute what its pieces share, which may have been trained since the last pass."""
        for hooks in self._container().stacks:
            for module in hooks.once.get(self.name, ()):
                module.renew()

    def shifts(self, stack: str) -> bool:
        """Whether it moves the positions of the text in this stack."""
        return self._pieces.shift(stack) > 0

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every trained parameter, each once, for an optimiser."""
        return self._pieces.trained()

    def parameter_groups(self, learning_rate: float | None = None) -> list[ParameterGroup]:
        """The trained parameters in groups with the methods' own learning rates and weight decays.

        learning_rate: one for every method instead of its own.
        """
        return self._pieces.parameter_groups(learning_rate)

    def penalty(self) -> Tensor | None:
        """What its methods add to the mean loss of a step; None where they add nothing.

        Loops other than `fit` add it to the loss themselves, and call `after_step` after each step
        of the optimiser: see `inlay.InlayCallback` for `transformers.Trainer`.
        """
        self._reminder().note_penalty()
        return self._pieces.penalty()

    def after_step(self, progress: float) -> None:
        """Tell its methods that a step of the optimiser is over, before gradients are dropped.

        progress: how much of the training is done, from 0 to 1.
        """
        self._reminder().note_step()
        self._pieces.after_step(progress)

    @property
    def settled(self) -> bool:
        """Whether its pieces are what a file should hold; some are pruned during training."""
        return self._pieces.settled()

    def train(self, mode: bool = True) -> Inlay:
        """Set its pieces, and nothing else, to training or evaluation mode."""
        self._pieces.train(mode)
        return self

    def eval(self) -> Inlay:
        """Set its pieces, and nothing else, to evaluation mode."""
        return self.train(False)

    def named_tensors(self) -> dict[str, Tensor]:
        """What a file holds: `decoder.3.attn.q/0/lora/a` -> tensor, detached, sharing memory."""
        return file_format.tensors_of(self._pieces)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `named_tensors` of an equal inlay returned; FileError for anything else."""
        file = file_format.InlayFile(Path(self.name), {}, dict(tensors))
        file_format.fill(file, self._pieces)

    def training_state(self) -> dict[str, Tensor]:
        """All tensors of its pieces, reparameterisations included, for checkpoints."""
        return {name: tensor.detach() for name, tensor in self._pieces.state_dict().items()}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `training_state` of an equal inlay returned."""
        self._pieces.resize(state)
        self._pieces.load_state_dict(state)

    def copy_from(self, other: Inlay, indices: Mapping[int, int]) -> None:
        """Copy tensors of another inlay's methods; indices: method number here -> there."""
        self._pieces.copy_from(other._pieces, indices)

    def count(self) -> int:
        """How many parameters are trained."""
        return sum(p.numel() for p in self.parameters())

    def saved_count(self) -> int:
        """How many numbers a file holds: a reparameterisation, such as an MLP, is dropped there.

        Indices and masks, which say what the numbers belong to, do not count.
        """
        tensors = self.named_tensors().values()
        return sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())

    def save(self, path: str | Path, *, tokenizer: Any = None, usage: Usage | None = None) -> Path:
        """Write one file, whole or not at all.

        tokenizer: its fingerprint goes in too. usage: what `inlay.open` and the command line then
        know of the base and the task.
        """
        chart = self._container().chart
        return file_format.save(self._pieces, self.name, chart, path, tokenizer, usage)

    def merge(self, *, dequantise: bool = False) -> PreTrainedModel:
        """Fold every piece into the base's weights and detach; all or nothing.

        A trained head cannot be folded: it stays attached alone, under the same name, and can be
        saved beside the new base (`inlay.attached(model)` finds it). Waits for the passes of other
        threads to end, as attaching and detaching do.

        dequantise: of a quantised base, make all matrices ordinary ones in the base's dtype first;
            otherwise it is refused. The model then takes as much memory as before quantisation.

        Returns the base. Raises MergeError before the first write where a piece cannot be folded.
        """
        with changing(self.model):
            others = [name for name in self._container().sets if name != self.name]
            merge.check_alone(others)
            methods = self.spec.methods
            heads = [index for index, method in enumerate(methods) if method.has_head]
            linears = merge.dequantised(self.model) if dequantise else {}
            for parameter, value in merge.plan(self.model, self.spec, self.placed, linears):
                parameter.data.copy_(value)
            model = self.detach()
            merge.replace_quantised(model, linears)
            if heads:
                remaining = attach(model, sum_of([methods[i] for i in heads]), name=self.name)
                remaining.copy_from(self, dict(enumerate(heads)))
        return model

    def detach(self) -> PreTrainedModel:
        """Take the inlay out and leave no trace. The handle keeps its tensors; returns the base."""
        with changing(self.model):
            container = self._container()
            uninstall(container, self.name)
            if not container.sets:
                remove_container(self.model, container)
        return self.model

    def __repr__(self) -> str:
        state = "" if self.attached else ", detached"
        lines = [f"{self.name}: {self.spec!r} ({self.count():,} parameters{state})"]
        places: dict[tuple[int, str], list[int]] = {}
        for placed in self.placed:
            entry = places.setdefault((placed.index, placed.site.role), [0, 0])
            entry[0] += 1
            entry[1] += sum(p.numel() for p in placed.piece.parameters())
        for (index, role), (count, size) in places.items():
            kind = type(self.spec.methods[index]).__name__
            lines.append(f"  {kind:<10} {role:<12} × {count:<4} {size:>14,}")
        shared = sum(p.numel() for p in self._pieces.shared.parameters())
        if shared:
            lines.append(f"  {'':<10} {'shared':<12}        {shared:>14,}")
        return "\n".join(lines)

    def _container(self) -> Container:
        container = container_of(self.model)
        if container is None or not self.attached:
            raise NamingError(f"the inlay {self.name!r} is not attached any more")
        return container

    def _reminder(self) -> Reminder:
        return self._container().reminders[self.name]


def attach(
    model: PreTrainedModel,
    spec: Spec,
    *,
    name: str = "default",
    prepared: Prepared | None = None,
) -> Inlay:
    """Set the pieces of a spec into a model and freeze the rest.

    model: any transformers model. spec: a method or a sum, `LoRA(rank=8) + Prefix(length=10)`.
    name: letters, digits, `_` and `-`. prepared: what `inlay.training.prepare` returned, for
    methods that look at the base and at data first.

    Where loading found no weights for the base's own task head ("newly initialized"), `BaseHead` is
    added, so that it is learned and saved too; unless the spec has it, or a trained head. Other
    parameters that loading found no values for are named in a warning.

    Raises SpecError, SiteError, PortError or NamingError; then the model is as it was.
    """
    if not isinstance(spec, Spec):
        raise SpecError(f"attach takes a method such as LoRA(rank=8), not {spec!r:.60}")

    def build_prepared(chart: Chart) -> PieceSet:
        require_gradients({site.name: site.host for site in chart.sites}, model.dtype)
        expanded = with_base_head(spec.expand(chart.sites), never_trained(model, chart.sites))
        for index, method in enumerate(expanded.methods):
            if method.needs_preparation and (prepared is None or index not in prepared):
                raise SpecError(
                    f"{type(method).__name__} looks at the base and at data before it is "
                    "attached; call prepared = inlay.training.prepare(model, spec, task, data), "
                    "and attach(model, spec, prepared=prepared)"
                )
        others = never_trained_otherwise(model, chart.sites)
        if others and not any(method.has_head for method in expanded.methods):
            warnings.warn(
                f"loading found no values for {', '.join(others[:3])}, which no inlay learns; they "
                "stay random, and another base has others: train and save the base with them first",
                stacklevel=4,
            )
        return build(chart, expanded, prepared)

    return _attach(model, name, build_prepared)


def load(
    model: PreTrainedModel,
    path: str | Path,
    *,
    name: str | None = None,
    strict: bool = True,
    tokenizer: Any = None,
) -> Inlay:
    """Attach the inlay of a file. `name` replaces the one it was saved under.

    Raises FileError for a file that is truncated, altered or not an inlay, and BaseError for one
    made for another base (or tokenizer, where one is given); `strict=False` allows another base
    whose sites and shapes fit. Then the model is as it was.
    """
    stored = file_format.read(path)
    spec = stored.spec

    def build_from_file(chart: Chart) -> PieceSet:
        file = file_format.renamed(stored, chart)
        if strict:
            check_base(file.path, file.header, chart)
            check_tokenizer(file.path, file.header, tokenizer)
        with torch.random.fork_rng(devices=[]):  # starting values are overwritten
            pieces = build(chart, spec)
        file_format.fill(file, pieces)
        return pieces

    return _attach(model, stored.header["name"] if name is None else name, build_from_file)


def attached(model: PreTrainedModel) -> dict[str, Inlay]:
    """Every inlay of a model, by name; of a deep copy, the copy's own."""
    container = container_of(model)
    if container is None:
        return {}
    base = container.chart.base
    return {
        name: Inlay(base, name, container.pieces(name), container.chart) for name in container.sets
    }


class rows:  # noqa: N801  # reads as a verb: `with rows(model, [...]):`
    """Say which inlay serves which row of the batch, in this thread or asyncio task.

    names: one entry a row: a name, a tuple of names, or None for the bare base. A batch with k
    times as many rows (beams) keeps them in order. `rows(model, None)` goes back to the default:
    every enabled inlay serves every row.

    Holds from the call on; used with `with`, until the end of the block. Other threads and tasks
    are not concerned; a task or `asyncio.to_thread` begun here goes by the same rows, but a
    `threading.Thread` does not: it says its own.

        with rows(model, ["legal", None, "medical"]):
            model.generate(**batch)
    """

    def __init__(self, model: PreTrainedModel, names: Request | None):
        container = container_of(model)
        if container is None:
            raise NamingError("no inlay is attached to this model; attach or load one first")
        self._routing = container.routing
        self._before: tuple[Names, ...] | None = container.routing.requested
        container.routing.request(names)

    def __enter__(self) -> rows:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._routing.restore(self._before)


def _attach(model: PreTrainedModel, name: str, make: Callable[[Chart], PieceSet]) -> Inlay:
    """Make the pieces for a model's chart and install them; on any error nothing has changed."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
        raise NamingError(f"an inlay's name is letters, digits, '_' and '-', not {name!r:.120}")
    if name in dir(nn.ModuleDict()):
        raise NamingError(f"an inlay cannot be called {name!r}, which torch needs; choose another")
    require_model(model)
    container = _check_free(model, name)
    chart = resolve(model) if container is None else container.chart
    pieces = make(chart)
    with changing(model):
        container = _check_free(model, name)  # another thread may have been faster
        created = container is None
        if container is None:
            container = create_container(model, chart)
        try:
            install(container, name, pieces)
        except InlayError:
            if created:
                remove_container(model, container)
            raise
    return Inlay(model, name, pieces, container.chart)


def _check_free(model: PreTrainedModel, name: str) -> Container | None:
    """The container of a model, if it has one. Raises where no inlay of that name can go in."""
    container = container_of(model)
    if container is not None and name in container.sets:
        raise NamingError(f"an inlay called {name!r} is attached already; detach it or rename")
    if container is None and CHILD in model._modules:
        raise SpecError(f"this model has a part of its own called {CHILD!r}; inlay needs the name")
    if container is not None and container.chart.base is not model:
        raise NamingError("inlays are attached to a model inside or around this one; use that one")
    return container
