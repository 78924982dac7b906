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
from typing import Any


class PerThread(threading.local):
    """Attributes that each thread reads and sets for itself.

    A deep copy or a pickle starts anew: a pass under way is neither copied nor stored. Subclasses
    have empty `__slots__`: a compiled pass would write into an object's dictionary, where it has
    one besides those of its threads.
    """

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        if "__slots__" not in vars(cls):
            raise TypeError(f"{cls.__name__} is per thread, and needs __slots__ = ()")

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), ()
