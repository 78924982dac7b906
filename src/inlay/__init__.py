"""inlay: every parameter-efficient fine-tuning method, set into a frozen transformer.

The public names, and nothing else. Methods (`LoRA`, `Prefix`, …) are those registered in
`inlay.core.method.METHODS`; `inlay methods` lists them.
"""

from typing import TYPE_CHECKING, Any

from inlay import methods as _methods  # noqa: F401  # importing the folder registers the methods
from inlay._version import __version__
from inlay.compile_prompt import compile_prompt
from inlay.core.method import METHODS, Method, Sum
from inlay.core.parse import load_entry_points, parse
from inlay.core.site import ROLES, Site, Where
from inlay.data.words import labels, words
from inlay.errors import InlayError
from inlay.handle import Inlay, attach, attached, load, rows
from inlay.laws.check import check

if TYPE_CHECKING:
    from inlay.methods.bitfit import BitFit
    from inlay.methods.head import Head
    from inlay.methods.houlsby import Houlsby
    from inlay.methods.ia3 import IA3
    from inlay.methods.infix import Infix
    from inlay.methods.ipt import IPT
    from inlay.methods.lora import LoRA
    from inlay.methods.parallel import Parallel
    from inlay.methods.pfeiffer import Pfeiffer
    from inlay.methods.prefix import Prefix
    from inlay.methods.prompt import Prompt
    from inlay.methods.ptuning import PTuning
    from inlay.methods.ptuning2 import PTuningV2
    from inlay.methods.warp import WARP
    from inlay.training.fit import fit, tune

load_entry_points()

__all__ = [
    "IA3",
    "IPT",
    "METHODS",
    "ROLES",
    "WARP",
    "BitFit",
    "Head",
    "Houlsby",
    "Infix",
    "Inlay",
    "InlayError",
    "LoRA",
    "Method",
    "PTuning",
    "PTuningV2",
    "Parallel",
    "Pfeiffer",
    "Prefix",
    "Prompt",
    "Site",
    "Sum",
    "Where",
    "__version__",
    "attach",
    "attached",
    "check",
    "compile_prompt",
    "fit",
    "labels",
    "load",
    "parse",
    "rows",
    "tune",
    "words",
]


def __getattr__(name: str) -> Any:
    if name in METHODS:
        return METHODS[name]
    if name in ("fit", "tune"):  # accelerate is slow to import, and not everybody trains
        from inlay import training

        return getattr(training, name)
    raise AttributeError(f"module 'inlay' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *METHODS})
