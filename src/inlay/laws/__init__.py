"""The laws: what must hold for every method on every base. Tests and `inlay check` run these.

Each law is a function of a `Case`. It attaches what it needs under names of its own, leaves the
model as it found it, and returns how far off the worst number was. `Broken` means the law does
not hold; `NotApplicable` that it says nothing about this case, and why.
"""

from collections.abc import Callable

from inlay.laws.case import Broken, Case, NotApplicable
from inlay.laws.function import dropped, generation, identity, merging
from inlay.laws.learning import checkpointing, only_pieces_learn
from inlay.laws.rows import padding_inert, rows_apart
from inlay.laws.shared_prefix import shared_prefix_runs_once
from inlay.laws.traces import copies_apart, no_trace, save_load

__all__ = ["LAWS", "Broken", "Case", "NotApplicable"]

LAWS: dict[str, Callable[[Case], float]] = {
    "identity": identity,
    "no trace": no_trace,
    "only pieces learn": only_pieces_learn,
    "save → load": save_load,
    "rows do not meet": rows_apart,
    "padding is inert": padding_inert,
    "once in front": shared_prefix_runs_once,
    "merge": merging,
    "gradient checkpointing": checkpointing,
    "copies are independent": copies_apart,
    "generation": generation,
    "dropped at inference": dropped,
}
"""The laws by name, in the order of the design. Parameter counts are each method's own test."""
