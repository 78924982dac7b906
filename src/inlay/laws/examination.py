"""Running a law, and telling what the inlay breaks from what the base breaks by itself."""

from __future__ import annotations

import torch

from inlay.laws import CONTROLLED, LAWS, SLOW_LAWS
from inlay.laws.batches import pad_batch
from inlay.laws.case import BaseBreaks, Broken, Case, NotApplicable
from inlay.laws.compare import model_output


def examine(law: str, case: Case) -> float:
    """The error that a law measures on a case. Raises Broken, NotApplicable or BaseBreaks.

    Where the law does not hold, or anything else is raised, the bare base is asked the same. A
    base that breaks the law by itself, as one that is not inert to padding does, says nothing
    about what is attached to it.
    """
    try:
        return (LAWS | SLOW_LAWS)[law](case)
    except NotApplicable:
        raise
    except Exception as fault:
        _ask_the_base(law, case)
        raise Broken(_words(fault)) from fault


def _ask_the_base(law: str, case: Case) -> None:
    """Raise BaseBreaks where the bare base breaks a law by itself."""
    control = case.control()
    try:
        if law in CONTROLLED:
            LAWS[law](control)
        else:
            _require_repetition(control)
    except NotApplicable:
        return
    except Exception as fault:
        raise BaseBreaks(f"the base itself, with nothing attached: {_words(fault)}") from None


def _require_repetition(case: Case) -> None:
    """Raise Broken where the base computes something else each time."""
    inputs = pad_batch(case.inputs(2))
    with case.isolated(), torch.no_grad(), case.serving([None]):
        if not torch.equal(model_output(case.model, inputs), model_output(case.model, inputs)):
            raise Broken("two passes with equal inputs differ")


def _words(fault: Exception) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(fault).split())
    return text if isinstance(fault, Broken) else f"{type(fault).__name__}: {text:.200}"
