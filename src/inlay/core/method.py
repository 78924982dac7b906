"""What is attached: Method (the fields of one method and where it goes) and Sum (several).

A spec is data. It can be written as Python (`LoRA(rank=8) + Prefix(length=10)`), as the same
text in a recipe (`parse`), and as JSON (`to_json`, `from_json`); all three say the same thing.
A method exists from the moment its class is defined: subclassing `Method` registers it.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, final

from pydantic import ConfigDict
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.core.arguments import check_arguments
from inlay.core.piece import OncePerPass, Piece
from inlay.core.site import Site, Where
from inlay.errors import SiteError, SpecError

METHODS: dict[str, type[Method]] = {}
"""Every method by its name. Filled by subclassing."""

ModuleT = TypeVar("ModuleT", bound=nn.Module)

KeysAndValues = Mapping[str, tuple[Tensor, Tensor]]


class Shared:
    """What the pieces of one method in one inlay have in common.

    sites: every site that the method takes, in order.
    keys_and_values: token ids `[T]` -> the base's own (k, v), each `[H, T, K]`, at every `*.kv`
        site that sees each token at a position of its own.
    vocabulary: how many tokens the base knows; 0 where it reads no words.
    prepared: the tensors that `Method.prepare` returned; empty where it did not run, as when an
        inlay is read from a file.
    modules: the modules that pieces share, by key: one storage in memory, one entry in the file.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        keys_and_values: Callable[[Sequence[int]], KeysAndValues],
        vocabulary: int = 0,
        prepared: Mapping[str, Tensor] | None = None,
    ):
        self.sites = list(sites)
        self.keys_and_values = keys_and_values
        self.vocabulary = vocabulary
        self.prepared: Mapping[str, Tensor] = {} if prepared is None else prepared
        self.modules: MutableMapping[str, nn.Module] = {}

    def module(self, key: str, make: Callable[[], ModuleT]) -> ModuleT:
        """The module that all pieces asking for `key` share, over sites and stacks.

        A piece keeps it as a `Reference`. The file holds it once, unless it is a `OncePerPass`,
        which training alone needs. A module whose sizes training decides is a `Resizable`.
        """
        if key not in self.modules:
            self.modules[key] = make()
        return self.modules[key]  # type: ignore[return-value]

    def inside(self, name: str) -> Shared:
        """What the pieces of an inner method share, whose keys meet none outside of `name`.

        A method made of several others gives each of them its own, in `build` and `finish` alike:
        two methods may ask for modules of the same key. `modules_inside` is the same for `penalty`
        and the other calls that get the modules alone.
        """
        inner = Shared(self.sites, self.keys_and_values, self.vocabulary, self.prepared)
        inner.modules = ModulesInside(self.modules, f"{name}/")
        return inner

    def once_per_pass(self, key: str, stack: str, make: Callable[[], nn.Module]) -> OncePerPass:
        """A shared module without inputs that runs once per forward pass of a stack."""
        return self.module(key, lambda: OncePerPass(make(), stack))


class ModulesInside(MutableMapping[str, nn.Module]):
    """A view of shared modules: those whose keys begin with `prefix`, by the rest of their keys."""

    def __init__(self, modules: MutableMapping[str, nn.Module], prefix: str):
        self._modules = modules
        self._prefix = prefix

    def __getitem__(self, key: str) -> nn.Module:
        return self._modules[self._prefix + key]

    def __setitem__(self, key: str, module: nn.Module) -> None:
        self._modules[self._prefix + key] = module

    def __delitem__(self, key: str) -> None:
        del self._modules[self._prefix + key]

    def __iter__(self) -> Iterator[str]:
        return (
            key.removeprefix(self._prefix) for key in self._modules if key.startswith(self._prefix)
        )

    def __len__(self) -> int:
        return sum(1 for _ in self)


def modules_inside(modules: Mapping[str, nn.Module], name: str) -> dict[str, nn.Module]:
    """Of shared modules those of the inner method `name`, by its own keys; see `Shared.inside`."""
    return dict(ModulesInside(dict(modules), f"{name}/"))


class Spec:
    """A method or a sum of methods."""

    @property
    @abstractmethod
    def methods(self) -> tuple[Method, ...]:
        """The methods in the order in which they apply."""

    @abstractmethod
    def expand(self, sites: Sequence[Site]) -> Spec:
        """The spec with every preset replaced by its sum for a base with these sites."""

    def __add__(self, other: Spec) -> Sum:
        if not isinstance(other, Spec):
            return NotImplemented
        return Sum(self.methods + other.methods)

    def exported(self) -> Spec:
        """The spec of what is left when everything that only training needs is dropped."""
        return sum_of([method.exported() for method in self.methods])


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained alike.

    weight_decay: None for that of the training options.
    """

    parameters: tuple[nn.Parameter, ...]
    learning_rate: float
    weight_decay: float | None = None


class Method(Spec):
    """One method. Subclasses are frozen dataclasses of hyperparameters and places with a `build`.

    examples: tiny instances that the laws run on every family of the zoo.
    identity: whether a model with this method just attached computes exactly what the base does.
    has_head: whether it brings the trained head of a task that reads one.
    passes:   how many forward passes over a batch a training step makes; `consistency` compares
              them.
    size:     the field that says how large it is, such as "rank"; empty where only its places do.
    lr:       the learning rate, where that does not depend on the fields.
    paper:    the source, for tables.
    sources:  where the default of each field comes from; `lr` stands for the learning rate.
    """

    at: Where
    examples: ClassVar[tuple[Method, ...]] = ()
    identity: ClassVar[bool] = False
    has_head: ClassVar[bool] = False
    passes: ClassVar[int] = 1
    size: ClassVar[str] = ""
    lr: ClassVar[float] = 1e-3
    paper: ClassVar[str] = ""
    sources: ClassVar[Mapping[str, str]] = {}

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True)

    def __init_subclass__(cls, listed: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not listed:
            return
        known = METHODS.get(cls.__name__)
        if known is not None and known.__module__ != cls.__module__:
            raise SpecError(
                f"there is a method {cls.__name__!r} already, in {known.__module__}; rename the "
                f"one in {cls.__module__}"
            )
        METHODS[cls.__name__] = cls

    def __new__(cls, *positional: Any, **named: Any) -> Self:
        """Refuse an unknown field with the name of the nearest one."""
        check_arguments(cls, positional, named, SpecError)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if any(field.name == "at" for field in dataclasses.fields(self)):  # type: ignore[arg-type]
            object.__setattr__(self, "at", Where.of(self.at))
        self.check()

    def check(self) -> None:
        """Raise SpecError for values that can never work, whatever the model."""

    def learning_rate(self) -> float:
        """The learning rate that training takes for it where none is given."""
        return self.lr

    def with_size(self, steps: int) -> Self:
        """The method in another size; a whole number of the steps that its size can have."""
        return dataclasses.replace(self, **{self.size: steps})  # type: ignore[type-var]

    def in_layers(self, layers: Sequence[int]) -> Self:
        """The method in these of its layers alone; its places outside of layers stay.

        layers: counted from 0. A method whose places follow from others in it hands this on.

        Raises SpecError where the places follow from something else.
        """
        if all(field.name != "at" for field in dataclasses.fields(self)):  # type: ignore[arg-type]
            kind = type(self).__name__
            raise SpecError(f"the layers of {kind} follow from its other fields; change those")
        at = Where(self.at.roles, tuple(layers), self.at.stacks)
        return dataclasses.replace(self, at=at)  # type: ignore[type-var]

    @property
    def needs_preparation(self) -> bool:
        """Whether `prepare` must run before a new inlay of this method is attached."""
        return type(self).prepare is not Method.prepare

    @property
    def preparation_rows(self) -> int | None:
        """How many rows a batch of `prepare` has; None for as many as in training."""
        return None

    @property
    def has_penalty(self) -> bool:
        """Whether `penalty` can return a term, so that a training loop must ask for it."""
        return type(self).penalty is not Method.penalty

    @property
    def has_schedule(self) -> bool:
        """Whether `after_step` does anything, so that a training loop must call it."""
        return type(self).after_step is not Method.after_step

    def prepare(
        self, base: PreTrainedModel, sites: Sequence[Site], batches: Iterable[Loss]
    ) -> Mapping[str, Tensor]:
        """Look at the base and at data, once, before a new inlay is attached.

        base: the model, frozen, in evaluation mode; a trained head that the task reads is there
        and may be trained meanwhile: it is dropped afterwards. sites: those of this method.
        batches: calls that each run one batch of training rows, `preparation_rows` in each, through
        the base and return its loss, a scalar. What is changed of the base must be put back.
        Returns tensors by name, which `build` finds in `shared.prepared`.
        """
        return {}

    @abstractmethod
    def build(self, site: Site, shared: Shared) -> Piece | None:
        """The piece of this method at one site; None to leave the site out."""

    def finish(self, pieces: Mapping[str, Piece], shared: Shared) -> None:
        """Called once when all pieces exist, for starting values that need all of them.

        pieces: by the name of their site.
        """

    def penalty(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module]
    ) -> Tensor | None:
        """A term on the pieces that is added to the mean loss of a step; None for none."""
        return None

    def consistency(self, divergence: Tensor) -> Tensor:
        """What the mean symmetrised KL divergence between passes adds to the mean loss."""
        return divergence

    def after_step(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module], progress: float
    ) -> None:
        """Called after each step of the optimiser, while the gradients are still there.

        progress: how much of the training is done, from 0 to 1. What it keeps from step to step
        lives in buffers of the pieces, so that checkpoints hold it.
        """

    def settled(self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module]) -> bool:
        """Whether the pieces are what a file should hold, such as pruned to their budget.

        As long as they are not, training keeps no state of theirs as the best one.
        """
        return True

    def parameter_groups(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module], learning_rate: float
    ) -> Sequence[ParameterGroup]:
        """The trained parameters in groups, each with its own learning rate and weight decay.

        learning_rate: the method's, or the one that the user asks for instead.
        """
        modules = [*pieces.values(), *shared.values()]
        parameters = dict.fromkeys(p for m in modules for p in m.parameters() if p.requires_grad)
        return [ParameterGroup(tuple(parameters), learning_rate)]

    def exported(self) -> Method:
        """The method that reads the files of this one; a method that drops nothing is itself."""
        return self

    @property
    @override
    def methods(self) -> tuple[Method, ...]:
        return (self,)

    @override
    def expand(self, sites: Sequence[Site]) -> Spec:
        return self

    def __repr__(self) -> str:
        changed = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value != _default(field):
                changed.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(changed)})"


Loss = Callable[[], Tensor]
"""Runs one batch through the base and returns its loss."""


class Preset(Method, listed=False):
    """A name for a sum of methods that depends on the base: `expand` gives the sum."""

    at: ClassVar[Where] = Where(("block?",))  # type: ignore[misc]

    @abstractmethod
    @override
    def expand(self, sites: Sequence[Site]) -> Spec: ...

    @final
    @override
    def build(self, site: Site, shared: Shared) -> Piece | None:
        raise SpecError(f"{type(self).__name__} is a preset; attach expands it")


@dataclass(frozen=True, eq=False)
class Placed:
    """One piece in its place: the site, the number of its method in the spec, and the method."""

    site: Site
    index: int
    method: Method
    piece: Piece

    @property
    def name(self) -> str:
        """The beginning of its tensors' names in a file: `decoder.3.attn.q/0`."""
        return f"{self.site.name}/{self.index}"


@dataclass(frozen=True)
class Sum(Spec):
    """Methods that act together, in order: `LoRA(rank=8) + Prefix(length=10)`."""

    parts: tuple[Method, ...]

    @property
    @override
    def methods(self) -> tuple[Method, ...]:
        return self.parts

    @override
    def expand(self, sites: Sequence[Site]) -> Spec:
        specs = [method.expand(sites) for method in self.parts]
        return sum_of([method for spec in specs for method in spec.methods])

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))


def sum_of(methods: Sequence[Method]) -> Spec:
    """The method itself, or the sum of several, or of none."""
    return methods[0] if len(methods) == 1 else Sum(tuple(methods))


def positive(method: Method, *names: str) -> None:
    """Raise SpecError unless every named number of the method is above zero."""
    for name in names:
        value = getattr(method, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            kind = type(method).__name__
            raise SpecError(f"{kind}: {name} must be a number above 0, not {value!r}")


def positive_int(method: Method, *names: str) -> None:
    """Raise SpecError unless every named number is a whole number above zero."""
    positive(method, *names)
    for name in names:
        if not isinstance(getattr(method, name), int):
            kind, value = type(method).__name__, getattr(method, name)
            raise SpecError(f"{kind}: {name} must be a whole number, not {value!r}")


def fraction(method: Method, *names: str) -> None:
    """Raise SpecError unless every named number of the method is at least 0 and below 1."""
    for name in names:
        value = getattr(method, name)
        if not 0 <= value < 1:
            kind = type(method).__name__
            raise SpecError(f"{kind}: {name} must be at least 0 and below 1, not {value!r}")


def require_site(method: Method, site: Site, fits: bool, what: str) -> None:
    """Raise SiteError unless the method can act at this site; `what` says where it can."""
    if not fits:
        raise SiteError(
            f"{type(method).__name__} acts on {what}, and {site.role!r} is not one; choose other "
            "places by at"
        )


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    default: Any = field.default
    return Where.of(default) if field.name == "at" else default
