"""What to set in: Method (one method's numbers and places), Sum (several), and their spellings.

A spec is data. It can be written as Python (`LoRA(rank=8) + Prefix(length=10)`), as the same
text in a recipe (`parse`), and as JSON (`to_json`, `from_json`); all three say the same thing.
A method exists from the moment its class is defined: subclassing `Method` registers it.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from inlay.core.piece import Piece, SharedModule
from inlay.core.site import Site, Where
from inlay.errors import SiteError, SpecError

METHODS: dict[str, type[Method]] = {}
"""Every method by its name. Filled by subclassing."""


class Shared:
    """What the pieces of one method in one inlay have in common while they are built.

    sites: every site that the method takes, in order.
    probe: token ids `[T]` -> the base's own (k, v), each `[H, T, K]`, at every `*.kv` site.
    vocabulary: how many tokens the base knows; 0 where it reads no words.
    """

    def __init__(
        self,
        sites: list[Site],
        probe: Callable[[list[int]], dict[str, Any]],
        vocabulary: int = 0,
    ):
        self.sites = sites
        self.probe = probe
        self.vocabulary = vocabulary
        self.modules: dict[str, SharedModule] = {}

    def module(self, key: str, stack: str, make: Callable[[], nn.Module]) -> SharedModule:
        """The module that all pieces asking for `key` share; it runs once per pass of a stack."""
        if key not in self.modules:
            self.modules[key] = SharedModule(make(), stack)
        return self.modules[key]


class Spec:
    """A method or a sum of methods."""

    @property
    @abstractmethod
    def methods(self) -> tuple[Method, ...]:
        """The methods in the order in which they apply."""

    def __add__(self, other: Spec) -> Sum:
        if not isinstance(other, Spec):
            return NotImplemented
        return Sum(self.methods + other.methods)

    def exported(self) -> Spec:
        """The spec of what is left when what only training needs is dropped."""
        return sum_of([method.exported() for method in self.methods])


class Method(Spec):
    """One method. Subclasses are frozen dataclasses of numbers and places with a `build`.

    examples: tiny instances that the laws run on every family of the zoo.
    identity: whether a model with this method just attached computes exactly what the base does.
    has_head:   whether it brings the trained head of a task that reads one.
    lr:       what `rate` says, where that does not depend on the numbers.
    paper:    the source, for tables.
    sources:  where the numbers that are its defaults come from, by field; `lr` is its rate's.
    """

    at: Where
    examples: ClassVar[tuple[Method, ...]] = ()
    identity: ClassVar[bool] = False
    has_head: ClassVar[bool] = False
    lr: ClassVar[float] = 1e-3
    paper: ClassVar[str] = ""
    sources: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = METHODS.get(cls.__name__)
        if known is not None and known.__module__ != cls.__module__:
            raise SpecError(f"two methods are called {cls.__name__}: {known} and {cls}")
        METHODS[cls.__name__] = cls

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", Where.of(self.at))
        self.check()

    def check(self) -> None:
        """Raise SpecError for numbers that can never work, whatever the model."""

    def learning_rate(self) -> float:
        """The learning rate that training takes for it where none is given."""
        return self.lr

    @abstractmethod
    def build(self, site: Site, shared: Shared) -> Piece | None:
        """The piece of this method at one site; None to leave the site out."""

    def finish(self, pieces: Mapping[str, Piece], shared: Shared) -> None:
        """Called once when all pieces stand, for starting values that need all of them."""

    def exported(self) -> Method:
        """See `Spec.served`; a method that drops nothing is itself."""
        return self

    @property
    def methods(self) -> tuple[Method, ...]:
        """Itself."""
        return (self,)

    def __repr__(self) -> str:
        said = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value != _default(field):
                said.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(said)})"


@dataclasses.dataclass(frozen=True)
class Sum(Spec):
    """Methods that act together, in order: `LoRA(rank=8) + Prefix(length=10)`."""

    parts: tuple[Method, ...]

    @property
    def methods(self) -> tuple[Method, ...]:
        """The summands."""
        return self.parts

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))


def sum_of(methods: Sequence[Method]) -> Spec:
    """The one method, or the sum of several, or of none."""
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
        raise SiteError(f"{type(method).__name__} acts on {what}, and {site.role!r} is not one")


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    default: Any = field.default
    return Where.of(default) if field.name == "at" else default
