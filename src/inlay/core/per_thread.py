"""PerThread: state of which every thread has its own.

Torch runs the forward passes of several threads at once, so what holds for the pass under way holds
for one thread. A class says what there is, and from which value a thread starts:

    class AttentionPass(PerThread):
        continues: bool = False

    attention_pass = AttentionPass()      # one object, shared
    attention_pass.continues = True       # for this thread alone
"""

from __future__ import annotations

import threading
from typing import Any


class PerThread(threading.local):
    """Attributes that each thread reads and sets for itself.

    A deep copy or a pickle starts anew: a pass under way is neither copied nor stored.
    """

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), ()
