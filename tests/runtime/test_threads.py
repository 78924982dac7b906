"""Threads and asyncio tasks that use one model at once: rows, passes, backward, attaching."""

from __future__ import annotations

import asyncio
import copy
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import inlay
from inlay.errors import BusyError, RowsError
from inlay.laws.case import perturb
from inlay.laws.compare import model_output, relative_error, weighted_sum
from inlay.runtime import gate
from inlay.runtime.trained_heads import classify
from tests import zoo

SPECS = {
    "lora": inlay.LoRA(rank=2),
    "prefix": inlay.Prefix(length=3, mlp=5),
    "prompt": inlay.Prompt(length=4),
    "houlsby": inlay.Houlsby(bottleneck=3),
}
NAMES = list(SPECS)


@pytest.fixture(autouse=True)
def _frequent_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def dressed(family: str) -> Any:
    model = zoo.fresh(family)
    for number, (name, spec) in enumerate(SPECS.items()):
        torch.manual_seed(number)
        perturb(inlay.attach(model, spec, name=name))
    return model


def batch(family: str, length: int = 7) -> dict[str, Tensor]:
    ids = torch.randint(8, 99, (1, length), generator=torch.Generator().manual_seed(length))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs if family != "t5" else {**inputs, "decoder_input_ids": ids[:, :3]}


def at_once(work: Callable[[int], Any], count: int = 4) -> list[Any]:
    """What `work(0)`, `work(1)`, … return, each in a thread of its own."""
    start = threading.Barrier(count)

    def run(number: int) -> Any:
        start.wait(20)
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return [future.result(60) for future in [threads.submit(run, i) for i in range(count)]]


@pytest.mark.parametrize("family", ["llama", "gemma2", "bert", "t5"])
@pytest.mark.parametrize("plain", [False, True], ids=["with", "plain call"])
def test_four_threads_get_their_own_inlay_in_all_of_forty_answers(family: str, plain: bool) -> None:
    model, inputs = dressed(family), batch(family)
    expected = {}
    with torch.no_grad():
        everything = model_output(model, inputs)
        for name in NAMES:
            with inlay.rows(model, [name]):
                expected[name] = model_output(model, inputs)

    def answers(number: int) -> list[bool]:
        name, right = NAMES[number], []
        if plain:
            inlay.rows(model, [name])
        for _ in range(40):
            with torch.no_grad():
                if plain:
                    answer = model_output(model, inputs)
                else:
                    with inlay.rows(model, [name]):
                        answer = model_output(model, inputs)
            right.append(relative_error(answer, expected[name]) < 1e-5)
        return right

    assert [sum(right) for right in at_once(answers)] == [40] * 4
    with torch.no_grad():
        assert torch.equal(model_output(model, inputs), everything)


@pytest.mark.parametrize("trains", [False, True], ids=["inference", "checkpointing"])
def test_rows_of_a_thread_are_not_those_of_another_whatever_the_order(trains: bool) -> None:
    """The second thread's rows are chosen while the first is inside its `with`."""
    model, inputs = dressed("llama"), batch("llama")
    if trains:
        zoo.drop_nothing(model)
        model.train().activation_checkpointing_enable({"use_reentrant": False})

    def ask() -> Tensor:
        model.zero_grad()
        output = model_output(model, inputs)
        return output.detach()

    expected = {}
    for name in ("lora", "prefix"):
        with inlay.rows(model, [name]):
            expected[name] = ask()
    everything = ask()
    chosen, asked, left = threading.Event(), threading.Event(), threading.Event()
    answers = {}

    def first() -> None:
        with inlay.rows(model, ["lora"]):
            chosen.set()
            asked.wait(20)
            answers["lora"] = ask()
        left.set()

    def second() -> None:
        chosen.wait(20)
        with inlay.rows(model, ["prefix"]):
            answers["prefix"] = ask()
            asked.set()
            left.wait(20)

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for name in ("lora", "prefix"):
        assert relative_error(answers[name], expected[name]) < 1e-5
    assert torch.equal(ask(), everything)


def test_tasks_of_asyncio_have_rows_of_their_own() -> None:
    model, inputs = dressed("llama"), batch("llama")
    expected = {}
    with torch.no_grad():
        everything = model_output(model, inputs)
        for name in NAMES:
            with inlay.rows(model, [name]):
                expected[name] = model_output(model, inputs)

    @torch.no_grad()
    def answer() -> Tensor:
        return model_output(model, inputs)

    async def ask(name: str) -> list[Tensor]:
        collected = []
        with inlay.rows(model, [name]):
            for _ in range(5):
                await asyncio.sleep(0)
                collected.append(answer())
                collected.append(await asyncio.to_thread(answer))  # it goes by the task's rows
        inlay.rows(model, [name])  # a plain call stays, in this task
        await asyncio.sleep(0)
        return [*collected, answer()]

    async def serve() -> list[list[Tensor]]:
        answers = await asyncio.gather(*map(ask, NAMES))
        assert torch.equal(answer(), everything)
        return answers

    for name, answers in zip(NAMES, asyncio.run(serve()), strict=True):
        assert all(relative_error(found, expected[name]) < 1e-5 for found in answers)


def test_a_thread_is_served_by_all_until_it_says_otherwise() -> None:
    model, inputs = dressed("llama"), batch("llama")
    with torch.no_grad():
        everything = model_output(model, inputs)
    with inlay.rows(model, ["lora"]), torch.no_grad(), ThreadPoolExecutor(1) as thread:
        assert torch.equal(thread.submit(torch.no_grad()(model_output), model, inputs).result(), everything)  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("checkpoint", [False, True], ids=["plain", "checkpointing"])
def test_threads_that_train_at_once_get_their_own_gradients(family: str, checkpoint: bool) -> None:
    model = dressed(family).train()
    zoo.drop_nothing(model)
    if checkpoint:
        model.activation_checkpointing_enable({"use_reentrant": False})
    handles = inlay.attached(model)
    batches = [batch(family, length) for length in (4, 6, 8, 10)]

    def step(number: int) -> list[Tensor]:
        """A forward pass, another one without gradients by another inlay, then backward."""
        with inlay.rows(model, [NAMES[number]]):
            loss = weighted_sum(model_output(model, batches[number]))
        with torch.no_grad(), inlay.rows(model, [NAMES[number - 1]]):
            model_output(model, batches[number - 1])
        parameters = list(handles[NAMES[number]].parameters())
        return list(torch.autograd.grad(loss, parameters))

    alone = [step(number) for number in range(4)]
    for _ in range(5):
        for expected, gradients in zip(alone, at_once(step), strict=True):
            assert max(map(relative_error, gradients, expected)) < 1e-4


class Stop:
    """A hook that holds a pass at one block until it is released."""

    def __init__(self, module: torch.nn.Module):
        self.reached, self.released = threading.Event(), threading.Event()
        self.handle = module.register_forward_hook(self.hold)

    def hold(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            self.reached.set()
            assert self.released.wait(20)


def change(model: Any, kind: str) -> None:
    if kind == "attach":
        inlay.attach(model, inlay.Houlsby(bottleneck=2), name="new")
    elif kind == "detach":
        inlay.attached(model)["lora"].detach()
    else:
        inlay.attached(model)["lora"].merge()


@pytest.mark.parametrize("kind", ["attach", "detach", "merge"])
@pytest.mark.parametrize("length", [60.0, 0.05], ids=["waits", "is refused"])
def test_changes_wait_for_passes(kind: str, length: float, monkeypatch: Any) -> None:
    monkeypatch.setattr(gate, "PATIENCE", length)
    model, inputs = zoo.fresh("llama"), batch("llama")
    perturb(inlay.attach(model, inlay.LoRA(rank=2), name="lora"))
    with torch.no_grad():
        expected = model_output(model, inputs)
    stop = Stop(model.model.layers[0])
    with ThreadPoolExecutor(2) as threads:
        answer = threads.submit(torch.no_grad()(model_output), model, inputs)
        assert stop.reached.wait(20)
        if length < 1:
            with pytest.raises(BusyError, match="inside a forward pass"):
                change(model, kind)
            stop.released.set()
        else:
            changed = threads.submit(change, model, kind)
            assert not threading.Event().wait(0.1) and not changed.done()
            stop.released.set()
            changed.result(20)
        assert torch.equal(answer.result(20), expected)
    if length < 1:
        assert list(inlay.attached(model)) == ["lora"]
        change(model, kind)  # now that nobody is inside
    assert list(inlay.attached(model)) == {"attach": ["lora", "new"]}.get(kind, [])
    if kind == "merge":
        with torch.no_grad():
            assert relative_error(model_output(model, inputs), expected) < 1e-4


def test_a_pass_of_the_bare_base_stays_bare_when_the_first_inlay_comes() -> None:
    model, inputs = zoo.fresh("llama"), batch("llama")
    with torch.no_grad():
        bare = model_output(model, inputs)
    stop = Stop(model.model.layers[0])
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(torch.no_grad()(model_output), model, inputs)
        assert stop.reached.wait(20)
        spec = inlay.Houlsby(bottleneck=3) + inlay.Prompt(length=2) + inlay.Prefix(length=2, mlp=4)
        perturb(inlay.attach(model, spec, name="a"))
        stop.released.set()
        assert torch.equal(answer.result(20), bare)


def test_threads_attach_and_detach_while_others_are_served() -> None:
    model, inputs = dressed("llama"), batch("llama")
    expected = {}
    with torch.no_grad():
        for name in NAMES:
            with inlay.rows(model, [name]):
                expected[name] = model_output(model, inputs)

    def work(number: int) -> bool:
        right = True
        for turn in range(12):
            if number < 2:
                with torch.no_grad(), inlay.rows(model, [NAMES[number]]):
                    answer = model_output(model, inputs)
                right = right and relative_error(answer, expected[NAMES[number]]) < 1e-5
            else:
                handle = inlay.attach(model, SPECS[NAMES[turn % 4]], name=f"{number}-{turn}")
                handle.detach()
        return right

    assert at_once(work) == [True] * 4
    assert list(inlay.attached(model)) == NAMES


def test_the_last_inlay_goes_while_passes_are_waiting_and_leaves_no_trace() -> None:
    model, inputs = zoo.fresh("llama"), batch("llama")
    with torch.no_grad():
        bare = model_output(model, inputs)

    def work(number: int) -> bool:
        right = True
        for _ in range(15):
            if number == 0:
                inlay.attach(model, inlay.LoRA(rank=2) + inlay.Prompt(length=2)).detach()
            else:
                with torch.no_grad():
                    right = right and torch.isfinite(model_output(model, inputs)).all().item()
        return right

    assert at_once(work) == [True] * 4
    assert not inlay.attached(model) and model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert torch.equal(model_output(model, inputs), bare)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_pass_that_fails_or_is_interrupted_holds_nobody(monkeypatch: Any) -> None:
    monkeypatch.setattr(gate, "PATIENCE", 5.0)
    model = dressed("llama")
    with pytest.raises(RowsError), inlay.rows(model, ["lora", "prefix"]):
        model(**batch("llama"))
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: inlay.attached(model)["lora"].detach()).result(20)

    def interrupt(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        raise KeyboardInterrupt

    handle = model.model.layers[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(**batch("llama"))
    handle.remove()
    inlay.attached(model)["prefix"].detach()  # this thread itself is not inside
    model(**batch("llama"))
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: inlay.attached(model)["prompt"].detach()).result(20)


def test_rows_that_name_what_another_thread_detached_are_refused() -> None:
    model, inputs = dressed("llama"), batch("llama")
    with ThreadPoolExecutor(1) as thread:
        thread.submit(inlay.rows, model, ["lora"]).result(20)
        inlay.rows(model, ["prefix"])
        inlay.attached(model)["lora"].detach()
        with pytest.raises(RowsError, match="'lora', which was detached"):
            thread.submit(model_output, model, inputs).result(20)
        thread.submit(inlay.rows, model, None).result(20)
        thread.submit(model_output, model, inputs).result(20)
    with inlay.rows(model, ["prefix"]):
        expected = model_output(model, inputs)
    assert torch.equal(model_output(model, inputs), expected)  # this thread's rows stay


def test_a_row_names_an_inlay_once() -> None:
    model = dressed("llama")
    with pytest.raises(RowsError, match="names 'lora' 2 times"):
        inlay.rows(model, [("lora", "prefix", "lora"), None])
    inlay.rows(model, [("lora", "prefix")])


def test_heads_classify_by_the_rows_of_their_thread() -> None:
    """Also where another pass of the thread lies between the states and the head."""
    model, inputs = zoo.fresh("bert"), batch("bert")
    for name in ("a", "b"):
        perturb(inlay.attach(model, inlay.Head(labels=("no", "yes")), name=name))
    with torch.no_grad():
        hidden = model.base_model(**inputs).last_hidden_state
        with inlay.rows(model, ["a"]):
            expected = classify(model, hidden, inputs["attention_mask"])
        with inlay.rows(model, ["a"]), ThreadPoolExecutor(1) as thread:
            with inlay.rows(model, ["b"]):
                model(**inputs)
            thread.submit(inlay.rows, model, ["b"]).result()
            assert torch.equal(classify(model, hidden, inputs["attention_mask"]), expected)


def test_copies_keep_the_rows_and_pickles_begin_anew() -> None:
    model, inputs = dressed("llama"), batch("llama")
    with torch.no_grad():
        everything = model_output(model, inputs)
        with inlay.rows(model, ["prefix"]):
            expected = model_output(model, inputs)
            twin = copy.deepcopy(model)
        assert torch.equal(model_output(twin, inputs), expected)
        assert torch.equal(model_output(model, inputs), everything)
        inlay.rows(twin, ["lora"])
        assert torch.equal(model_output(model, inputs), everything)
        again = pickle.loads(pickle.dumps(twin))
        assert torch.equal(model_output(again, inputs), everything)


def test_a_compiled_base_goes_by_the_rows_of_each_thread() -> None:
    model = zoo.fresh("llama")
    for name in ("lora", "prefix"):
        perturb(inlay.attach(model, SPECS[name], name=name))
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    inputs = {"input_ids": torch.cat([batch("llama")["input_ids"]] * 2), "use_cache": False}

    @torch.no_grad()
    def ask(names: list[str | None], base: Any) -> Tensor:
        with inlay.rows(model, names):
            return base(**inputs).logits

    with ThreadPoolExecutor(1) as thread:
        for names in (["lora"], ["prefix"], ["prefix", None], ["lora"]):
            expected = ask(names, model)
            assert relative_error(ask(names, compiled), expected) < 1e-5
            assert relative_error(thread.submit(ask, names, compiled).result(), expected) < 1e-5
