"""The autoencoder of intrinsic prompt tuning: many tasks' prompts -> few dimensions -> prompts.

Qin et al., 2021, section 3.2 (multi-task subspace finding). What it writes is read by `IPT`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from inlay.core.piece import PromptVectors
from inlay.errors import TrainingError
from inlay.files.atomic import write_whole
from inlay.handle import attach, rows
from inlay.methods.ipt import IPT, Decoder
from inlay.training.loop import rng
from inlay.training.loop.progress import Shown
from inlay.training.multitask import Lesson

NAME = "inlay-intrinsic"


def fit_decoder(
    model: PreTrainedModel,
    lessons: Sequence[Lesson],
    path: str | Path,
    *,
    code: int = 250,
    inner: int = 768,
    steps: int = 1000,
    batch_size: int = 8,
    lr: float = 1e-3,
    weight: float = 200.0,
    seed: int = 0,
    console: Console | None = None,
) -> Path:
    """Find the few dimensions in which the prompts of several tasks lie.

    lessons: tasks with a trained prompt each, all of one length (`inlays`, of which one is a
    prompt). path: the file to write. code: d_I. weight: of the squared error between a prompt and
    what is made of it, beside the task's loss behind what is made of it (200 in the paper's code).

    Raises TrainingError where a lesson has no prompt, or their lengths differ.
    """
    prompts = [_prompt(lesson) for lesson in lessons]
    if len({prompt.shape for prompt in prompts}) != 1:
        raise TrainingError("there must be lessons, and their prompts must be equally long")
    length, width = prompts[0].shape
    console = console or Console(stderr=True)
    with rng.kept():
        rng.seed(seed)
        encoder = nn.Linear(length * width, code).to(model.device)
        decoder = Decoder(code, inner, length * width).to(model.device)
        with torch.no_grad():
            decoder.outer.bias.copy_(torch.stack(prompts).mean(0).flatten())
        scratch = attach(model, IPT(length=length, code=None), name=NAME)
        try:
            values: nn.Parameter
            (values,) = scratch.parameters()
            learning = [*encoder.parameters(), *decoder.parameters()]
            optimizer = torch.optim.AdamW(learning, lr=lr)
            encoded = [lesson.task.encode_all(lesson.data) for lesson in lessons]
            with (
                Shown(console) as shown,
                shown.counting("rows for the subspace", steps * batch_size) as count,
            ):
                for _ in range(steps):
                    number = int(torch.randint(len(lessons), ()))
                    chosen = torch.randint(len(encoded[number]), (batch_size,)).tolist()
                    made = decoder(encoder(prompts[number].flatten()))
                    values.data.copy_(made.detach().view_as(values))
                    model.zero_grad()
                    task = lessons[number].task
                    batch = task.collate([encoded[number][place] for place in chosen])
                    batch = batch.to(model.device)
                    with rows(model, [NAME]):
                        loss, counted = task.loss(task.outputs(model, batch), batch)
                    (loss / counted).backward()
                    assert values.grad is not None
                    through = (made * values.grad.flatten()).sum()  # the chain rule, by hand
                    (through + weight * F.mse_loss(made, prompts[number].flatten())).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    count(batch_size)
        finally:
            scratch.detach()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in decoder.state_dict().items()}
    return write_whole(path, save(tensors))


def _prompt(lesson: Lesson) -> Tensor:
    """The vectors `[P, D]` of a lesson's prompt."""
    pieces = [placed.piece for handle in lesson.inlays for placed in handle.placed]
    found = [piece for piece in pieces if isinstance(piece, PromptVectors)]
    if len(found) != 1:
        raise TrainingError(
            f"every lesson needs one prompt, and {[one.name for one in lesson.inlays]} have "
            f"{len(found)}"
        )
    with torch.no_grad():
        return found[0]().detach().float().clone()
