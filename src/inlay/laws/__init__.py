"""The laws: what must hold for every method on every base. Tests and `inlay check` run these.

Each law is a function of a `Case`, a base with a spec. It attaches what it needs under names of its
own, leaves the model as it was, and returns the largest error that it measured, relative to the
size of the numbers compared; 0.0 where it compares bit for bit. It raises `Broken` where it does
not hold, and `NotApplicable`, with the reason, where it says nothing about the case.

`inlay.laws.examination.examine` runs one: it asks the bare base too where a law does not hold.
"""

from collections.abc import Callable

from inlay.laws.bare import unserved_rows_are_the_base
from inlay.laws.case import BaseBreaks, Broken, Case, NotApplicable
from inlay.laws.compiled import compiled_equals_eager
from inlay.laws.draws import draws_repeat
from inlay.laws.function import attached_is_base, export_computes_the_same, merged_computes_the_same
from inlay.laws.generation import generation_agrees
from inlay.laws.learning import checkpointing_keeps_gradients, only_pieces_learn
from inlay.laws.loops import loops_cannot_skip_steps
from inlay.laws.remains import nothing_outlives_the_pass
from inlay.laws.rows import padding_is_inert, rows_do_not_meet
from inlay.laws.shared_prefix import shared_prefix_computes_the_same
from inlay.laws.sharing import shared_modules_are_stored_once
from inlay.laws.tensors import index_tensors_are_exact
from inlay.laws.texts import continued_cache_is_one_pass, packed_rows_are_rows_alone
from inlay.laws.traces import copies_are_independent, detach_leaves_no_trace, file_restores_inlay

__all__ = [
    "CONTROLLED",
    "LAWS",
    "SLOW_LAWS",
    "BaseBreaks",
    "Broken",
    "Case",
    "Law",
    "NotApplicable",
]

Law = Callable[[Case], float]

LAWS: dict[str, Law] = {
    "identity": attached_is_base,
    "no trace": detach_leaves_no_trace,
    "only pieces learn": only_pieces_learn,
    "save → load": file_restores_inlay,
    "rows do not meet": rows_do_not_meet,
    "padding is inert": padding_is_inert,
    "shared prefix": shared_prefix_computes_the_same,
    "merge": merged_computes_the_same,
    "gradient checkpointing": checkpointing_keeps_gradients,
    "copies are independent": copies_are_independent,
    "generation": generation_agrees,
    "dropped at inference": export_computes_the_same,
    "shared modules": shared_modules_are_stored_once,
    "draws": draws_repeat,
    "penalty and schedule": loops_cannot_skip_steps,
    "indices and masks": index_tensors_are_exact,
    "unserved rows": unserved_rows_are_the_base,
    "packed rows": packed_rows_are_rows_alone,
    "continued cache": continued_cache_is_one_pass,
    "nothing outlives the pass": nothing_outlives_the_pass,
}
"""The laws by name, in the order of the design. Parameter counts are each method's own test."""

SLOW_LAWS: dict[str, Law] = {"compiled": compiled_equals_eager}
"""Laws that take long, and are checked only by name."""

CONTROLLED = frozenset(
    {
        "rows do not meet",
        "padding is inert",
        "gradient checkpointing",
        "copies are independent",
        "generation",
        "packed rows",
        "continued cache",
        "nothing outlives the pass",
    }
)
"""Laws that the bare base can be asked as well (`Case.control`)."""
