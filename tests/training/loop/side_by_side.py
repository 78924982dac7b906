"""A program that several processes run: train, and let the first one save what came of it.

Usage: torchrun … side_by_side.py FOLDER. One run goes to its end in one piece, another in two.
"""

import json
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from inlay import LoRA
from inlay.tasks import TASKS
from inlay.training import fit
from inlay.training.loop.launch import processes
from tests.training import tiny
from tests.training.methods import Pruned


class Cut(tiny.Recite):
    """Ctrl-C in one of the processes."""

    name = "cut"
    left = 0

    def loss(self, outputs, batch):
        self.left -= 1
        if self.left == 0 and processes().process_index == processes().num_processes - 1:
            signal.raise_signal(signal.SIGINT)
        return super().loss(outputs, batch)


del TASKS["cut"]


def main(folder: Path, cut: int) -> None:
    """Train to the end; with `cut`, Ctrl-C comes at that batch, and a second run goes on."""
    world, me = processes().num_processes, processes().process_index
    for left in [cut, 0] if cut else [0]:
        spec = LoRA(rank=2) + Pruned(noise=0.0)
        model, handle = tiny.attached(spec, model=tiny.base().double())
        model.inlays.double()
        with torch.no_grad():
            for parameter in handle.parameters():
                parameter += me  # what the first process has is what counts
            for placed in handle.placed:
                for buffer in placed.piece.buffers():
                    buffer += me
        task = tiny.task(model, Cut)
        task.left = left
        # 11 batches an epoch: the last step has batches for some of the processes only
        options = {"batch_size": 2, "accumulate": 4 // world, "epochs": 2, "eval_every": 3}
        options |= {"dev": tiny.examples(9, seed=1), "folder": folder, "console": tiny.quiet()}
        try:
            result = fit(model, handle, task, tiny.examples(22), **options)
        except KeyboardInterrupt:
            assert left
            continue
        if processes().is_main_process:
            save_file(tiny.state(handle), folder / "end.safetensors")
            content = tiny.numbers(result) | {"processes": world}
            (folder / "result.json").write_text(json.dumps(content))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]) / "whole", 0)
    main(Path(sys.argv[1]) / "parts", 6)
    processes().destroy_process_group()
