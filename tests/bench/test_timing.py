"""bench/timing.py: turns, and which seconds count."""

import time

from bench import timing


def test_functions_take_turns_forwards_and_backwards():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    times = timing.take_turns(runs, rounds=2, warm=1)
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert len(times.pairs("a", "b")) == 2


def test_waiting_takes_none_of_the_processors_seconds():
    with timing.processor_seconds():
        assert timing.timed(lambda: time.sleep(0.05)) < 0.04
    assert timing.timed(lambda: time.sleep(0.05)) >= 0.05
