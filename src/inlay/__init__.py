"""inlay: every parameter-efficient fine-tuning method, set into a frozen transformer.

The public names, and nothing else: those listed here, and every method by its name (`LoRA`,
`Prefix`, …), which is there as soon as its file is in `inlay/methods/`.
"""

from typing import TYPE_CHECKING, Any

from inlay import methods as _methods  # noqa: F401  # importing the folder registers the methods
from inlay._version import __version__
from inlay.asking import ask_all
from inlay.budget import fit_budget
from inlay.compile_prompt import compile_prompt
from inlay.core.method import METHODS, Method, Preset, Sum
from inlay.core.parse import load_entry_points, parse
from inlay.core.site import ROLES, Site, Where
from inlay.data.words import labels, words
from inlay.dropping import drop_layers
from inlay.errors import InlayError
from inlay.fusing import adapter_weights, fuse, prune_fusion
from inlay.handle import Inlay, attach, attached, load, rows
from inlay.laws.check import check
from inlay.runtime.openings import note_opening

if TYPE_CHECKING:
    from inlay.predicting.opening import open_inlay as open
    from inlay.predicting.predictor import Predictor
    from inlay.training.callback import InlayCallback
    from inlay.training.fit import fit, tune

FROM_TRAINING = ("InlayCallback", "fit", "tune")
FROM_PREDICTING = {"Predictor": "Predictor", "open": "open_inlay"}
"""Names that are imported when they are first used: accelerate is slow to import."""

__all__ = [
    "METHODS",
    "ROLES",
    "Inlay",
    "InlayCallback",
    "InlayError",
    "Method",
    "Predictor",
    "Preset",
    "Site",
    "Sum",
    "Where",
    "__version__",
    "adapter_weights",
    "ask_all",
    "attach",
    "attached",
    "check",
    "compile_prompt",
    "drop_layers",
    "fit",
    "fit_budget",
    "fuse",
    "labels",
    "load",
    "note_opening",
    "open",
    "parse",
    "prune_fusion",
    "rows",
    "tune",
    "words",
]
__all__ += sorted(METHODS)


def __getattr__(name: str) -> Any:
    if name in METHODS:
        return METHODS[name]
    if name in FROM_TRAINING:
        from inlay import training

        return getattr(training, name)
    if name in FROM_PREDICTING:
        from inlay import predicting

        return getattr(predicting, FROM_PREDICTING[name])
    raise AttributeError(f"module 'inlay' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *METHODS})


load_entry_points()  # last, so that what they import finds all names here
