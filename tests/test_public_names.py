"""The public names are a decision: a new one is added here on purpose."""

from __future__ import annotations

import inlay

NAMES = {
    "METHODS", "ROLES", "Inlay", "InlayCallback", "InlayError", "Method", "Predictor", "Preset",
    "Site", "Sum", "Where", "__version__", "adapter_weights", "ask_all", "attach", "attached",
    "check", "compile_prompt", "drop_layers", "fit", "fit_budget", "fuse", "labels", "load",
    "note_opening", "open", "parse", "prune_fusion", "rows", "tune", "words",
}  # fmt: skip


def test_the_list_is_this_one_and_every_method():
    methods = {m for m, k in inlay.METHODS.items() if k.__module__.startswith("inlay.methods.")}
    assert NAMES | methods <= set(inlay.__all__)
    assert set(inlay.__all__) <= NAMES | set(inlay.METHODS)


def test_every_name_is_there_and_listed():
    for name in inlay.__all__:
        assert getattr(inlay, name) is not None
    assert set(inlay.__all__) <= set(dir(inlay))
