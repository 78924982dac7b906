"""PerThread: state of which every thread has its own.

Torch runs the forward passes of several threads at once, so what holds for the pass under way holds
for one thread. A class says what there is, and from which value a thread starts:

    class AttentionPass(PerThread):
        __slots__ = ()
        continues: bool = False

    attention_pass = AttentionPass()      # one object, shared
    attention_pass.continues = True       # for this thread alone
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar


class PerThread(threading.local):
    """Attributes that each thread reads and sets for itself.

    A deep copy or a pickle starts anew: a pass under way is neither copied nor stored.

    A compiled pass reads and writes them too, if they are nowhere but with the threads. So
    subclasses have empty `__slots__`, and their values go from the class to each thread.
    """

    __slots__ = ()
    _initial: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        if "__slots__" not in vars(cls):
            raise TypeError(f"{cls.__name__} is per thread, and needs __slots__ = ()")
        cls._initial = {name: vars(cls)[name] for name in cls.__annotations__}
        for name in cls._initial:
            delattr(cls, name)

    def __init__(self) -> None:  # threading.local calls it in each thread
        for name, value in self._initial.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), ()
