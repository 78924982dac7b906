"""Whether a stack can be given vectors in place of token ids, which prompts need.

Some families look at the ids beside their embeddings (a second table for each block), some take no
vectors at all, and in some another part of the base embeds the text, so that ids never reach the
stack. Nothing but a pass tells: two tokens are run through the bare stack in both ways. Families
with a description are known to be right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inlay.architectures.chart import Chart, Stack
from inlay.architectures.families import FAMILIES
from inlay.core.modes import evaluating
from inlay.core.site import Site
from inlay.errors import InlayError, PortError
from inlay.runtime.stack_inputs import tensors

NO_VECTORS = "takes no vectors in place of ids"

TOLERANCE = 1e-3
"""How far two passes over the same text may differ, relative to their size."""


@dataclass(frozen=True)
class Intake:
    """What goes into a stack: why it takes no vectors, why ids do not reach it; None: they do."""

    no_vectors: str | None
    no_ids: str | None


_known: WeakKeyDictionary[PreTrainedModel, dict[str, Intake]] = WeakKeyDictionary()


def check_vectors(method: str, site: Site, chart: Chart) -> None:
    """Raise PortError where vectors in place of ids are not the same to a stack."""
    reason = _intake(chart, site.stack).no_vectors
    if reason is not None:
        raise PortError(
            f"{method} puts vectors where token ids stand, and {_names(chart, site)} {reason}; "
            "LoRA and adapters work here"
        )


def check_ids(method: str, site: Site, chart: Chart) -> None:
    """Raise PortError where the ids of a text do not reach the stack."""
    reason = _intake(chart, site.stack).no_ids
    if reason is not None:
        raise PortError(
            f"{method} stands where a text names its tokens, and {_names(chart, site)} {reason}; "
            "use Prompt, which needs no ids"
        )


def _names(chart: Chart, site: Site) -> str:
    return f"the {site.stack} of {type(chart.base).__name__}"


def _intake(chart: Chart, name: str) -> Intake:
    """What goes into a stack; tried out once for each base."""
    model, stack = chart.base, chart.stack(name)
    if not stack.takes("inputs_embeds"):
        return Intake(NO_VECTORS, NO_VECTORS)
    if FAMILIES.get(model.config.model_type) is chart.family or model.device.type == "meta":
        return Intake(None, None)
    of_model = _known.setdefault(model, {})
    if name not in of_model:
        with evaluating(model):
            of_model[name] = _tried(chart, stack)
    return of_model[name]


def _tried(chart: Chart, stack: Stack) -> Intake:
    assert stack.embed is not None
    top = min(3, stack.vocabulary - 1)
    ids = torch.tensor([[1, top]], device=chart.base.device).clamp(max=stack.vocabulary - 1)
    no_ids = None if _ids_arrive(chart, stack, ids) else "is given vectors by the rest of the base"
    by_vectors = _run(stack, {"inputs_embeds": stack.embed(ids), **stack.looked_up(ids)})
    if by_vectors is None:
        return Intake("does not run on vectors alone", no_ids)
    by_ids = _run(stack, {"input_ids": ids})
    if by_ids is not None and by_ids.shape == by_vectors.shape:
        error = (by_ids - by_vectors).abs().max() / by_ids.abs().max().clamp(min=1e-12)
        if not error < TOLERANCE:
            return Intake("computes something else from vectors than from ids", no_ids)
    if _returns_other_positions(stack, ids):
        return Intake("returns other states of its positions than the last hidden one", no_ids)
    return Intake(None, no_ids)


def _run(stack: Stack, inputs: dict[str, Any]) -> Tensor | None:
    """The first output of the stack's own forward; None where it does not run on these inputs."""
    return next(iter(_outputs(stack, inputs)), None)


def _outputs(stack: Stack, inputs: dict[str, Any]) -> list[Tensor]:
    """What the stack's own forward returns in numbers; nothing where it does not run on these."""
    try:
        output = stack.module.forward(**inputs)
    except InlayError:
        raise
    except Exception:
        return []
    return [tensor.float() for tensor in tensors(output) if tensor.is_floating_point()]


def _returns_other_positions(stack: Stack, ids: Tensor) -> bool:
    """Whether what it returns besides its last hidden state grows with the text.

    Nobody could cut a prompt's positions out of that (the streams of a ProphetNet decoder).
    """
    assert stack.embed is not None
    texts = (ids, torch.cat((ids, ids[:, :1]), 1))
    short, long = (
        [output.shape for output in _outputs(stack, {"inputs_embeds": stack.embed(text),
                                                     **stack.looked_up(text)})]
        for text in texts
    )  # fmt: skip
    return len(short) == len(long) and short[1:] != long[1:]


def _ids_arrive(chart: Chart, stack: Stack, ids: Tensor) -> bool:
    """Whether the base hands the ids of its text on to the stack; yes, where it cannot be run."""
    seen: list[bool] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        seen.append(any(t.shape == ids.shape and torch.equal(t, ids) for t in given))

    if stack.module is chart.base.base_model or stack.module is chart.base:
        return True
    hook = stack.module.register_forward_pre_hook(note, with_kwargs=True)
    inputs = {"decoder_input_ids" if stack.reads_encoder else "input_ids": ids}
    if stack.reads_encoder and chart.reads_text:
        inputs["input_ids"] = ids
    try:
        chart.base(**inputs)
    except InlayError:
        raise
    except Exception:
        return not seen or seen[-1]
    finally:
        hook.remove()
    return not seen or seen[-1]
