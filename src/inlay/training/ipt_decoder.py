"""fit_decoder: the autoencoder of intrinsic prompt tuning, trained on the prompts of many tasks.

    prompt [P·D] -> encoder -> code [d_I] -> decoder -> prompt [P·D]

Qin et al., 2021, section 3.2 (multi-task subspace finding). `IPT` reads the decoder's file.
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
from inlay.training.loop.progress import ProgressDisplay
from inlay.training.multitask import Subtask

NAME = "inlay-intrinsic"
"""The name of the inlay that holds the decoded prompt during training."""


def fit_decoder(
    model: PreTrainedModel,
    subtasks: Sequence[Subtask],
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
    """Find the subspace of few dimensions in which the prompts of several tasks lie.

    Args:
        model: the base.
        subtasks: tasks with one trained prompt each in their `inlays`, all equally long.
        path: the file to write.
        code: d_I, the number of dimensions.
        inner: the width of the decoder's hidden layer.
        steps: steps of the optimiser.
        batch_size: rows in a batch.
        lr: the learning rate.
        weight: of the squared error between a prompt and its reconstruction, relative to the
            task's loss with the reconstruction (200 in the paper's code).
        seed: of the starting values and of the order of the rows.
        console: where progress is shown; None for the error stream.

    Raises TrainingError where a subtask has no prompt, or their lengths differ.
    """
    prompts = [_prompt(subtask) for subtask in subtasks]
    if len({prompt.shape for prompt in prompts}) != 1:
        raise TrainingError("give at least one subtask, and prompts that are equally long")
    length, width = prompts[0].shape
    console = console or Console(stderr=True)
    with rng.preserved():
        rng.seed(seed)
        encoder = nn.Linear(length * width, code).to(model.device)
        decoder = Decoder(code, inner, length * width).to(model.device)
        with torch.no_grad():
            decoder.outer.bias.copy_(torch.stack(prompts).mean(0).flatten())
        scratch = attach(model, IPT(length=length, code=None), name=NAME)
        try:
            vectors: nn.Parameter
            (vectors,) = scratch.parameters()
            parameters = [*encoder.parameters(), *decoder.parameters()]
            optimizer = torch.optim.AdamW(parameters, lr=lr)
            encoded = [subtask.task.encode_all(subtask.data) for subtask in subtasks]
            with (
                ProgressDisplay(console) as display,
                display.counting("rows for the subspace", steps * batch_size) as advance,
            ):
                for _ in range(steps):
                    number = int(torch.randint(len(subtasks), ()))
                    drawn = torch.randint(len(encoded[number]), (batch_size,)).tolist()
                    reconstruction = decoder(encoder(prompts[number].flatten()))
                    vectors.data.copy_(reconstruction.detach().view_as(vectors))
                    model.zero_grad()
                    task = subtasks[number].task
                    batch = task.collate([encoded[number][i] for i in drawn]).to(model.device)
                    with rows(model, [NAME]):
                        loss, count = task.loss(task.outputs(model, batch), batch)
                    (loss / count).backward()
                    assert vectors.grad is not None
                    # The chain rule by hand, through the copy into the attached prompt.
                    task_term = (reconstruction * vectors.grad.flatten()).sum()
                    error = F.mse_loss(reconstruction, prompts[number].flatten())
                    (task_term + weight * error).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    advance(batch_size)
        finally:
            scratch.detach()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in decoder.state_dict().items()}
    return write_whole(path, save(tensors))


def _prompt(subtask: Subtask) -> Tensor:
    """The vectors `[P, D]` of a subtask's prompt."""
    pieces = [placed.piece for handle in subtask.inlays for placed in handle.placed]
    prompts = [piece for piece in pieces if isinstance(piece, PromptVectors)]
    if len(prompts) != 1:
        raise TrainingError(
            f"every subtask needs one prompt, and {[h.name for h in subtask.inlays]} have "
            f"{len(prompts)}"
        )
    with torch.no_grad():
        return prompts[0]().detach().float().clone()
