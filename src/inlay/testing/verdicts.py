"""Running the laws over tiny models, and what they said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from inlay.core.method import Method, Spec
from inlay.core.parse import from_json, parse, to_json
from inlay.errors import InlayError, LawError, SiteError
from inlay.laws import LAWS, Case, NotApplicable
from inlay.laws.examination import examine
from inlay.testing.models import FAMILIES, shared_tiny_model


@dataclass(frozen=True)
class Verdict:
    """What the laws said about one spec on one family.

    refusal: why the family cannot take the spec; None where it does. spoke: the laws that hold.
    silent: the laws that say nothing about it, and why.
    """

    refusal: SiteError | None
    spoke: tuple[str, ...] = ()
    silent: Mapping[str, str] | None = None


def laws_hold(spec: Spec, family: str, *, laws: Iterable[str] = LAWS) -> Verdict:
    """Run laws for a spec on the tiny model of a family.

    spec: a method or a sum; its class must be registered, as every `Method` is. family: a name
    from `FAMILIES`. laws: names from `inlay.laws.LAWS`.

    A family that lacks the places that the spec needs is no mistake: the verdict says so. Raises
    LawError, which names all that does not hold, where a law is broken or cannot run.
    """
    try:
        case = Case(shared_tiny_model(family), spec)
    except SiteError as refusal:
        return Verdict(refusal)
    spoke: list[str] = []
    silent: dict[str, str] = {}
    broken: list[str] = []
    for name in laws:
        try:
            examine(name, case)
            spoke.append(name)
        except NotApplicable as reason:
            silent[name] = str(reason)
        except Exception as error:
            broken.append(f"{name}: {type(error).__name__}: {error}")
    if broken:
        raise LawError("\n".join([f"{spec!r} on {family}:", *broken]))
    return Verdict(None, tuple(spoke), silent)


def check_method(
    kind: type[Method], *, families: Iterable[str] = FAMILIES
) -> dict[tuple[str, str], Verdict]:
    """Check a method as the methods of this library are checked.

    Every one of its `examples` can be written as text and as JSON, and all laws hold for it on
    every family that has its places. Returns the verdicts by (text of the example, family).

    Raises LawError where that is not so, where the method has no examples, or where no family takes
    an example.
    """
    if not kind.examples:
        raise LawError(f"{kind.__name__} has no examples; set {kind.__name__}.examples")
    verdicts: dict[tuple[str, str], Verdict] = {}
    for example in kind.examples:
        _check_text(example)
        of_example = {(repr(example), name): laws_hold(example, name) for name in families}
        if all(verdict.refusal is not None for verdict in of_example.values()):
            reason = next(iter(of_example.values())).refusal
            raise LawError(f"no family takes {example!r}: {reason}")
        verdicts |= of_example
    return verdicts


def _check_text(example: Method) -> None:
    """Raise LawError where a method is not what its text or JSON says."""
    try:
        same = parse(repr(example)) == example and from_json(to_json(example)) == example
    except InlayError as error:
        raise LawError(f"{example!r} cannot be read back from its text: {error}") from None
    if not same:
        raise LawError(f"{example!r} is read back from its text as {parse(repr(example))!r}")
