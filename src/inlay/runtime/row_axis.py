"""Whether the rows of a batch stand one after another in what a module computes.

Rows with different inlays are told apart by the first dimension: `[B, T, D]`, `[B · k, …]` for
beams, `[B · T, D]` for flattened positions. Some bases lay out `[T, B, D]`, or stack streams as
`[S, B, T, D]`. Shapes do not always tell (T may be 2 B), so it is measured, once, when rows first
differ. The stack runs on two equal rows; where rows come first, both halves are equal:

    rows first     a0 a1 a2 | a0 a1 a2         texts last     a0 a0 a1 | a1 a2 a2
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from inlay.architectures.chart import Stack
from inlay.core.modes import evaluating
from inlay.core.per_thread import PerThread
from inlay.errors import RowsError

LENGTH = 3
"""Tokens of the two rows. Odd, so that texts that come first cannot be halved."""

CLOSE = 1e-3
"""How far equal rows may differ, relative to their size."""

LEFT_OUT = {
    "past_key_values",
    "cache_params",
    "use_cache",
    "return_dict",
    "output_hidden_states",
    "labels",
}
OF_THE_TEXT = {"inputs_embeds", "attention_mask", "position_ids", "token_type_ids"}
"""Inputs that the two rows are run without."""


class _Measuring(PerThread):
    """What this thread has noted so far, by site; None while it measures nothing."""

    __slots__ = ()
    noted: dict[str, bool] | None = None


class RowAxis:
    """What was measured of one stack."""

    def __init__(self, stack: Stack):
        self.stack = stack
        self._measuring = _Measuring()
        self._rows_first: dict[str, bool] = {}

    @property
    def under_way(self) -> bool:
        """Whether this thread is measuring the stack's modules now."""
        return self._measuring.noted is not None

    def covers(self, sites: Iterable[str]) -> bool:
        """Whether all of these sites were measured, or cannot be."""
        return self._rows_first.keys() >= set(sites)

    def measure(self, sites: Iterable[str], inputs: dict[str, Any], batch: int) -> None:
        """Run two equal rows like those of a pass with these inputs. Nothing serves them."""
        noted = self._measuring.noted = dict.fromkeys(sites, True)  # unless it is reached
        try:
            with evaluating(self.stack.module):
                self.stack.module.forward(**self._two_rows(inputs, batch))
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
            return  # a stack that reads more than is known here: shapes have to do
        finally:
            self._measuring.noted = None
            self._rows_first = {**self._rows_first, **noted}

    def note(self, site: str, computed: Tensor) -> None:
        """Note what a module computed of the two rows."""
        noted = self._measuring.noted
        assert noted is not None
        half, rest = divmod(len(computed), 2)
        first, second = computed[:half], computed[half:]
        close = not rest and (first - second).abs().max() <= CLOSE * first.abs().max()
        noted[site] = noted.get(site, True) and bool(close)

    def check(self, site: str) -> None:
        """Raise RowsError where the rows at a site cannot have different inlays."""
        if not self._rows_first.get(site, True):
            raise RowsError(
                f"rows do not come first in what {site!r} of {type(self.stack.module).__name__} "
                "computes, so they cannot have different inlays; give every row the same inlay"
            )

    def _two_rows(self, inputs: dict[str, Any], batch: int) -> dict[str, Any]:
        stack = self.stack
        texts = set() if stack.embed is None else OF_THE_TEXT
        two: dict[str, Any] = {}
        for name, value in inputs.items():
            if name in LEFT_OUT | texts or name.endswith("attention_mask"):
                continue
            rows = isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch
            two[name] = value[:1].expand(2, *value.shape[1:]) if rows else value
        if stack.embed is not None:
            ids = torch.arange(2, LENGTH + 2, device=stack.device)
            two["input_ids"] = ids.expand(2, -1)
        if stack.takes("use_cache"):
            two["use_cache"] = False
        return two
