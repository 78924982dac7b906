"""A wrong field in a constructor: the nearest name, for every method, task and option alike."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import Any

import pytest

import inlay
from inlay import LoRA, Where
from inlay.core.method import Method, Preset
from inlay.errors import InlayError, SpecError, TaskError
from inlay.tasks import TASKS, Generate, Verbalizer
from inlay.tasks.options import Option


def options(root: type = Option) -> list[type]:
    """Every class that a field of a task may hold."""
    subclasses = root.__subclasses__()
    return [*subclasses, *(kind for sub in subclasses for kind in options(sub))]


KINDS: list[tuple[type, type[InlayError]]] = [
    *((kind, SpecError) for kind in inlay.METHODS.values() if not issubclass(kind, Preset)),
    *((kind, TaskError) for kind in TASKS.values()),
    *((kind, TaskError) for kind in options() if kind.__module__.startswith("inlay.")),
    (Where, SpecError),
]


@pytest.mark.parametrize(("kind", "error"), KINDS, ids=lambda kind: kind.__name__)
def test_the_nearest_field_is_named(kind: Any, error: type[InlayError]) -> None:
    fields = dataclasses.fields(kind)
    if not fields:
        with pytest.raises(error, match=f"^{kind.__name__} has no field 'z'$"):
            kind(z=1)
        return
    name = fields[0].name
    with pytest.raises(
        error, match=f"{kind.__name__} has no field '{name}z'; did you mean '{name}'"
    ):
        kind(**{f"{name}z": 1})


def test_python_and_recipes_use_the_same_words() -> None:
    with pytest.raises(SpecError) as written:
        inlay.parse("LoRA(rnk=2)")
    with pytest.raises(SpecError) as called:
        LoRA(rnk=2)
    assert (
        str(called.value) == str(written.value) == "LoRA has no field 'rnk'; did you mean 'rank'?"
    )


def test_too_many_values_and_the_same_one_twice() -> None:
    with pytest.raises(SpecError, match="DoRA takes 4 values without a name, not 5"):
        inlay.DoRA(1, 2.0, 0.0, "attn.q", 8)
    with pytest.raises(SpecError, match="LoRA has two values for 'rank'; give one"):
        LoRA(2, rank=4)
    with pytest.raises(TaskError, match="give fields by name, as in Generate\\("):
        Generate("text")


def test_objects_are_copied_pickled_and_described_as_before() -> None:
    verbalizer = Verbalizer(words={"no": "bad", "yes": "good"})
    for thing in (LoRA(rank=2), Where("attn.q"), verbalizer, LoRA(rank=2) + inlay.Prefix()):
        assert copy.deepcopy(thing) == pickle.loads(pickle.dumps(thing)) == thing
    assert list(inspect.signature(LoRA).parameters) == [
        *("rank", "alpha", "dropout", "at", "stabilised", "start", "ratio")
    ]
    assert dataclasses.replace(LoRA(rank=2), rank=3) == LoRA(3)


def test_a_class_with_a_constructor_of_its_own_is_let_alone() -> None:
    class Loose(Method, listed=False):
        at = Where("attn.q")

        def __init__(self, *values: int, **more: int) -> None:
            self.values = values

    assert Loose(1, 2, other=3).values == (1, 2)
