"""A program that is killed: fork, train, SIGKILL, and again, until the run comes to its end.

Usage: killed.py FOLDER. Trains once undisturbed, once killed at random instants, and once killed
right before and after every kind of call that a checkpoint's writing makes. Prints two numbers of
kills. A fork spares every attempt the seconds that imports take.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from inlay.training import fit
from tests.training import tiny


def train(folder: Path) -> None:
    model, handle = tiny.attached()
    options = {"batch_size": 2, "epochs": 4, "eval_every": 5, "checkpoint_every": 1}
    dev = tiny.examples(3, seed=1)
    rows = tiny.examples(30)
    fit(
        model,
        handle,
        tiny.task(model),
        rows,
        dev=dev,
        folder=folder,
        console=tiny.quiet(),
        **options,
    )
    save_file(tiny.state(handle), folder / "end.safetensors")


def attempt(folder: Path, *, delay: float | None = None, call: int | None = None) -> bool:
    """Train in a child, to be killed after a delay or at a call. Whether it came to its end."""
    child = os.fork()
    if child == 0:
        if call is not None:
            die_at(call)
        train(folder)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
    return os.WIFEXITED(status)


def die_at(call: int) -> None:
    """Die before or after the so-manyth call that makes a file lasting."""
    left = call

    def deadly(real):
        def wrapped(*args):
            for instant in range(2):
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                if instant == 0:
                    result = real(*args)
            return result

        return wrapped

    os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    draw = random.Random()
    begun = time.monotonic()
    assert attempt(folder / "whole")
    length = time.monotonic() - begun
    at_random = at_writes = 0
    while not attempt(folder / "random", delay=draw.uniform(0.05, 0.3) * length):
        at_random += 1
    # log and file are synced, the file replaced, the folder synced: eight instants a checkpoint,
    # and two checkpoints each time
    while not attempt(folder / "writes", call=17 + at_writes % 8):
        at_writes += 1
    print(at_random, at_writes)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
