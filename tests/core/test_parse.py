"""Specs: one thing in three spellings, and clear refusals."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

import inlay
from inlay import IA3, Houlsby, LoRA, Prefix, Where
from inlay.core.parse import from_json, parse, to_json
from inlay.errors import SpecError

NAMES = {**inlay.METHODS, "Where": Where}
EXAMPLES = [e for kind in inlay.METHODS.values() for e in (kind(), *kind.examples)]
SUMS = [LoRA(rank=8) + Prefix(length=10), Houlsby() + LoRA(alpha=3) + IA3()]


@pytest.mark.parametrize("spec", [*EXAMPLES, *SUMS], ids=repr)
def test_three_spellings(spec: inlay.Method) -> None:
    assert eval(repr(spec), NAMES) == spec
    assert parse(repr(spec)) == spec
    assert from_json(to_json(spec)) == spec
    assert hash(spec) == hash(eval(repr(spec), NAMES))


ROLES = st.lists(st.sampled_from(sorted(inlay.ROLES)), min_size=1, max_size=4, unique=True)
PLACES = st.builds(
    Where,
    ROLES.map(tuple),
    st.none() | st.lists(st.integers(-3, 9), min_size=1, max_size=3).map(tuple),
    st.none() | st.sampled_from([("encoder",), ("decoder",), ("encoder", "decoder")]),
)


@given(
    rank=st.integers(1, 10**6),
    alpha=st.floats(1e-3, 1e6),
    dropout=st.floats(0, 0.99),
    at=PLACES,
)
def test_any_lora_round_trips(rank: int, alpha: float, dropout: float, at: Where) -> None:
    spec = LoRA(rank=rank, alpha=alpha, dropout=dropout, at=at)
    assert eval(repr(spec), NAMES) == parse(repr(spec)) == from_json(to_json(spec)) == spec


def test_a_role_or_several_make_a_place() -> None:
    assert LoRA(at="attn.q").at == LoRA(at=("attn.q",)).at == Where("attn.q")
    assert parse("LoRA(at='attn.q')").at == Where(("attn.q",))
    assert parse("LoRA(at=Where(('attn.q', 'mlp.up'), layers=(0, -1)))").at.layers == (0, -1)
    assert parse("LoRA + Prefix").methods == (LoRA(), Prefix())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Lora(rank=8)", "no method is called 'Lora'; did you mean 'LoRA'?"),
        ("LoRA(rnk=8)", "LoRA has no field 'rnk'; did you mean 'rank'?"),
        ("LoRA(8)", "fields are given by name"),
        ("LoRA(rank='many')", "LoRA: rank: Input should be a valid integer.*'many'"),
        ("LoRA(rank=0)", "rank must be a number above 0, not 0"),
        ("LoRA(rank=-3)", "rank must be a number above 0"),
        ("LoRA(dropout=1.0)", "dropout must be at least 0 and below 1"),
        ("Prefix(dropout=1.0)", "Prefix: dropout must be at least 0 and below 1"),
        ("PTuningV2(dropout=-0.1)", "PTuningV2: dropout must be at least 0 and below 1"),
        ("PTuningV2(mlp=0)", "PTuningV2: mlp must be a number above 0"),
        ("LoRA(at='attn.w')", "no role is called 'attn.w'; did you mean 'attn.[a-z]+'"),
        (
            "LoRA(at=Where(('attn.q',), stack='decoder'))",
            "Where has no field 'stack'; did you mean 'stacks'?",
        ),
        ("LoRA(at=Where(('attn.q',), stacks='top'))", "no stack is called 'top'"),
        ("LoRA(rank=__import__('os').system('true'))", "cannot read"),
        ("LoRA(rank=8", "cannot read the method"),
        ("1 + 2", "cannot read the method"),
        ("", "cannot read the method"),
        ("Houlsby(act='swoosh')", "no activation is called 'swoosh'"),
        ("Prompt(start='words')", "Prompt: start"),
        ("Prompt(length=1, start=((1,), (2,)))", "2 groups of ids for 1 positions"),
        ("Head(labels=('a', 'a'))", "labels are different names"),
        (
            "Head(labels=('a', 'b'), pool='max')",
            "pool: Input should be 'mean', 'last', 'first' or 'each'",
        ),
    ],
)
def test_refusals(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse(text)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", "[1]", '[{"rank": 8}]', '[{"method": "LoRA", "ranks": 8}]', '["LoRA"]'],
)
def test_json_that_is_no_spec(text: str) -> None:
    with pytest.raises(SpecError):
        from_json(text)


def test_every_method_works_with_no_argument_and_is_documented() -> None:
    for name, kind in inlay.METHODS.items():
        assert getattr(inlay, name)() == kind()
        assert kind.__doc__ and "at:" in kind.__doc__, name
        for field in dataclasses.fields(kind):
            assert f"{field.name}:" in kind.__doc__, f"{name}.{field.name} is not explained"


def test_a_name_cannot_be_taken_twice() -> None:
    with pytest.raises(SpecError, match="there is a method 'LoRA' already"):
        type("LoRA", (inlay.Method,), {"__module__": "elsewhere"})
