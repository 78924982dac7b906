"""What a piece may know of a pass: draws that repeat, and that a graph can hold."""

from __future__ import annotations

import pytest
import torch

from inlay.core.context import PassContext
from inlay.errors import SpecError


@pytest.mark.parametrize("key", [("route", "decoder.0.mlp"), ("adapterdrop",)], ids=str)
def test_draws_are_those_of_the_generator_in_a_graph_too(key: tuple[str, ...]) -> None:
    drawn = []
    for seed in (5, torch.tensor(5)):
        context = PassContext(seed=seed)
        expected = torch.randint(1000, (4,), generator=context.generator(*key))
        drawn.append(context.draw(1000, 4, *key))
        assert torch.equal(drawn[-1], expected)
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], PassContext(seed=6).draw(1000, 4, *key))
    assert not torch.equal(drawn[0], PassContext(seed=5).draw(1000, 4, *key, "other"))


def test_a_piece_that_does_not_declare_its_draws_has_none() -> None:
    for draw in (PassContext().generator, lambda: PassContext().draw(2, 1)):
        with pytest.raises(SpecError, match="draws = True"):
            draw()
