"""State of each thread, as torch sees it when it compiles a pass."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from inlay.core.per_thread import PerThread
from inlay.runtime.routing import Routing


class Notes(PerThread):
    __slots__ = ()
    value: int = 0


def test_each_thread_reads_what_it_has_set_and_copies_begin_anew() -> None:
    notes = Notes()
    notes.value = 3
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(lambda: notes.value).result() == 0
        thread.submit(setattr, notes, "value", 5).result()
        assert thread.submit(lambda: notes.value).result() == 5
    assert notes.value == 3
    assert copy.deepcopy(notes).value == pickle.loads(pickle.dumps(notes)).value == 0


class Routed(nn.Module):
    """A module whose hooks bind rows and read them, as those of a base do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.routing = Routing()
        self.routing.enable("a", True)
        self.routing.enable("b", True)
        self.register_forward_pre_hook(self.enter)
        self.inner.register_forward_hook(self.add)

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.routing.bind()

    def add(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        for row in self.routing.bound:
            for name in row:
                output = output + {"a": 1, "b": 10}[name]
        return output

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_a_compiled_pass_goes_by_the_rows_of_its_thread_and_task() -> None:
    module, counter = Routed(), CompileCounter()
    compiled = torch.compile(module, backend=counter, fullgraph=True)

    def answer(names: list[str] | None) -> float:
        if names is not None:
            module.routing.request(names)
        return compiled(torch.zeros(1)).item()

    def in_context(names: list[str] | None) -> float:
        return copy_context().run(answer, names)

    assert [in_context(n) for n in (None, ["a"], ["b"], ["a"], None)] == [11, 1, 10, 1, 11]
    with ThreadPoolExecutor(2) as threads:
        assert threads.submit(in_context, ["a"]).result() == 1
        assert threads.submit(in_context, None).result() == 11
    assert counter.frame_count == 3  # each choice of rows is compiled once
