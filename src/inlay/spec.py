"""What to set in: Method (one method's numbers and places), Sum (several), and their spellings.

A spec is data. It can be written as Python (`LoRA(rank=8) + Prefix(length=10)`), as the same
text in a recipe (`parse`), and as JSON (`to_json`, `from_json`); all three say the same thing.
A method exists from the moment its class is defined: subclassing `Method` registers it.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError
from torch import nn

from inlay.errors import SiteError, SpecError, nearest
from inlay.piece import Once, Piece
from inlay.site import Site, Where

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
        self.modules: dict[str, Once] = {}

    def once(self, key: str, stack: str, make: Callable[[], nn.Module]) -> Once:
        """The module that all pieces asking for `key` share; it runs once per pass of a stack."""
        if key not in self.modules:
            self.modules[key] = Once(make(), stack)
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

    def served(self) -> Spec:
        """The spec of what is left when what only training needs is dropped."""
        return together([method.served() for method in self.methods])


class Method(Spec):
    """One method. Subclasses are frozen dataclasses of numbers and places with a `build`.

    examples: tiny instances that the laws run on every family of the zoo.
    identity: whether a model with this method just attached computes exactly what the base does.
    judges:   whether it brings the trained head of a task that reads one.
    lr:       what `rate` says, where that does not depend on the numbers.
    paper:    the source, for tables.
    sources:  where the numbers that are its defaults come from, by field; `lr` is its rate's.
    """

    at: Where
    examples: ClassVar[tuple[Method, ...]] = ()
    identity: ClassVar[bool] = False
    judges: ClassVar[bool] = False
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

    def rate(self) -> float:
        """The learning rate that training takes for it where none is given."""
        return self.lr

    @abstractmethod
    def build(self, site: Site, shared: Shared) -> Piece | None:
        """The piece of this method at one site; None to leave the site out."""

    def finish(self, pieces: Mapping[str, Piece], shared: Shared) -> None:
        """Called once when all pieces stand, for starting values that need all of them."""

    def served(self) -> Method:
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


def together(methods: Sequence[Method]) -> Spec:
    """The one method, or the sum of several, or of none."""
    return methods[0] if len(methods) == 1 else Sum(tuple(methods))


def positive(method: Method, *names: str) -> None:
    """Raise SpecError unless every named number of the method is above zero."""
    for name in names:
        value = getattr(method, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            kind = type(method).__name__
            raise SpecError(f"{kind}: {name} must be a number above 0, not {value!r}")


def whole(method: Method, *names: str) -> None:
    """Raise SpecError unless every named number is a whole number above zero."""
    positive(method, *names)
    for name in names:
        if not isinstance(getattr(method, name), int):
            kind, value = type(method).__name__, getattr(method, name)
            raise SpecError(f"{kind}: {name} must be a whole number, not {value!r}")


def share(method: Method, *names: str) -> None:
    """Raise SpecError unless every named number of the method is at least 0 and below 1."""
    for name in names:
        value = getattr(method, name)
        if not 0 <= value < 1:
            kind = type(method).__name__
            raise SpecError(f"{kind}: {name} must be at least 0 and below 1, not {value!r}")


def only(method: Method, site: Site, fits: bool, what: str) -> None:
    """Raise SiteError unless the method can act at this site; `what` says where it can."""
    if not fits:
        raise SiteError(f"{type(method).__name__} acts on {what}, and {site.role!r} is not one")


def method_named(name: str) -> type[Method]:
    """The class of a method, by its name. Raises SpecError with the nearest name."""
    if name not in METHODS:
        raise SpecError(f"no method is called {name!r}{nearest(name, METHODS)}")
    return METHODS[name]


def make(name: str, fields: Mapping[str, Any]) -> Method:
    """The method `name` with these fields, every type checked (JSON lists count as tuples)."""
    kind = method_named(name)
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for field in fields:
        if field not in known:
            raise SpecError(f"{name} has no field {field!r}{nearest(field, known)}")
    fields = {key: _place(value) if key == "at" else value for key, value in fields.items()}
    try:
        return TypeAdapter(kind).validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(step) for step in first["loc"][:1])
        raise SpecError(f"{name}: {at}: {first['msg']}, not {first['input']!r}") from None


def to_json(spec: Spec) -> str:
    """The spec as JSON: a list of `{"method": name, field: value, …}`, defaults included."""
    return json.dumps([_plain(method) for method in spec.methods], sort_keys=True)


def from_json(text: str) -> Spec:
    """The spec that `to_json` wrote. Raises SpecError on anything else."""
    try:
        parts = json.loads(text)
    except ValueError as error:
        raise SpecError(f"the spec is not JSON: {error}") from None
    if not isinstance(parts, list) or not parts:
        raise SpecError("a spec in JSON is a list of methods that is not empty")
    made = []
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("method"), str):
            raise SpecError(f"a method in JSON is an object with a 'method', not {part!r:.80}")
        made.append(make(part["method"], {k: v for k, v in part.items() if k != "method"}))
    return together(made)


def parse(text: str) -> Spec:
    """The spec written as in Python: `LoRA(rank=8) + Prefix`. Nothing is evaluated."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise SpecError(f"cannot read the method {text!r}; write LoRA(rank=8) + Prefix()") from None
    return together([_read(node, text) for node in _summands(tree)])


def load_strangers() -> None:
    """Import the modules that other packages offer under the entry point `inlay.methods`."""
    for point in entry_points(group="inlay.methods"):
        point.load()


def _place(value: Any) -> Any:
    return Where(**value) if isinstance(value, Mapping) else Where.of(value)


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    default: Any = field.default
    return Where.of(default) if field.name == "at" else default


def _plain(method: Method) -> dict[str, Any]:
    return {"method": type(method).__name__, **dataclasses.asdict(method)}  # type: ignore[call-overload]


def _summands(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from _summands(node.left)
        yield from _summands(node.right)
    else:
        yield node


def _read(node: ast.expr, text: str) -> Method:
    if isinstance(node, ast.Name):
        return make(node.id, {})
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.args or any(word.arg is None for word in node.keywords):
            raise SpecError(f"{node.func.id}: fields are given by name, as in LoRA(rank=8)")
        return make(node.func.id, {str(w.arg): _value(w.value, text) for w in node.keywords})
    raise SpecError(f"cannot read the method {text!r}; write LoRA(rank=8) + Prefix()")


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Where":
        fields = {str(word.arg): _value(word.value, text) for word in node.keywords}
        names = [field.name for field in dataclasses.fields(Where)]
        for key in fields:
            if key not in names:
                raise SpecError(f"Where has no field {key!r}{nearest(key, names)}")
        return Where(*[_value(arg, text) for arg in node.args], **fields)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise SpecError(f"cannot read {ast.unparse(node)!r} in {text!r}") from None


__all__ = [
    "METHODS",
    "Method",
    "Shared",
    "Spec",
    "Sum",
    "from_json",
    "load_strangers",
    "make",
    "method_named",
    "only",
    "parse",
    "positive",
    "share",
    "to_json",
    "whole",
]
