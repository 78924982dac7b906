"""Names of labels, however data write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from inlay.data.dataset import Value


def label_name(value: Value) -> str:
    """A label as text: 1, 1.0 and "1" are one label, and so are true and "true"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def names_of_labels(names: Any) -> Any:
    """What data call labels -> their names: a mapping, or a list for the numbers from 0 on.

    Anything else is returned as it is.
    """
    if isinstance(names, list | tuple):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping):
        return names
    return {label_name(label): name for label, name in names.items()}


STYLES: tuple[Callable[[str], str], ...] = (
    str.title,
    str.upper,
    str.lower,
    lambda name: str(int(float(name))),
    lambda name: str(float(name)),
)
"""Ways in which one label is written."""


def other_names(label: str, known: Iterable[str]) -> dict[str, str] | None:
    """The `label_names` with which a text is a known label, otherwise written: 1.0 is 1, True true.

    None where it is none of them.
    """
    names = list(known)
    same = next((name for name in names if _same(name, label)), None)
    if same is None:
        return None
    for style in STYLES:
        try:
            styled = {style(name): name for name in names}
        except (ValueError, OverflowError):
            continue
        if styled.get(label) == same and len(styled) == len(names):
            return styled
    return {label: same, **{name: name for name in names if name != same}}


def _same(name: str, label: str) -> bool:
    if name.strip().lower() == label.strip().lower():
        return True
    try:
        return float(name) == float(label)
    except ValueError:
        return False
