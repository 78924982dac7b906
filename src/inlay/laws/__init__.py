"""The laws: what must hold for every method on every base. Tests and `inlay check` run these.

Each law is a function of a `Case`. It attaches what it needs under names of its own, leaves the
model as it found it, and returns how far off the worst number was. `Broken` means the law does
not hold; `Beside` that it says nothing about this case, and why.
"""

from collections.abc import Callable

from inlay.laws.case import Beside, Broken, Case
from inlay.laws.front import front_once
from inlay.laws.function import dropped, generation, identity, merging
from inlay.laws.learning import checkpointing, only_pieces_learn
from inlay.laws.rows import padding_inert, rows_apart
from inlay.laws.traces import copies_apart, no_trace, save_load

__all__ = ["LAWS", "Beside", "Broken", "Case"]

LAWS: dict[str, Callable[[Case], float]] = {
    "identity": identity,
    "no trace": no_trace,
    "only pieces learn": only_pieces_learn,
    "save → load": save_load,
    "rows do not meet": rows_apart,
    "padding is inert": padding_inert,
    "once in front": front_once,
    "merge": merging,
    "gradient checkpointing": checkpointing,
    "copies are independent": copies_apart,
    "generation": generation,
    "dropped at inference": dropped,
}
"""The laws by name, in the order of the design. Parameter counts are each method's own test."""
