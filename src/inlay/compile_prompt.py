"""compile_prompt: a prompt of a causal model as keys and values, which take no positions.

Nothing after a prompt changes its hidden states, so its keys and values are the same for every
text. As a prefix they give the same answers, and nothing has to run them again.
"""

from __future__ import annotations

from inlay.core.method import sum_of
from inlay.core.modes import evaluating
from inlay.core.piece import PromptVectors
from inlay.errors import MergeError
from inlay.handle import Inlay, attach
from inlay.methods.prefix import Prefix


def compile_prompt(handle: Inlay) -> Inlay:
    """Replace an inlay by an equal one that has a prefix where it had prompts.

    handle: an inlay with at least one prompt before the text (`Prompt`); it is detached. Whatever
    else is in it stays. Returns the new inlay, attached under the same name.

    Raises MergeError, with nothing changed, where there is no prompt, where the model is not a
    causal one that is given its positions, or where a sliding window would lose the prompt and
    not the prefix.
    """
    model, name, base = handle.model, handle.name, type(handle.model).__name__
    prompts = sorted({p.index for p in handle.placed if isinstance(p.piece, PromptVectors)})
    if not prompts:
        raise MergeError(
            f"{handle.spec!r} has no prompt before the text to compile; give an inlay of a method "
            "such as Prompt"
        )
    if not handle.prompts_run_alone:
        raise MergeError(
            f"a prompt of {base} sees what follows it, or its attention takes no extra keys; "
            "only prompts of causal models can be compiled"
        )
    window = handle.chart.stacks[0].window
    if window is not None:
        raise MergeError(
            f"{base} forgets a prompt after {window} positions, and would not forget "
            "a prefix; keep the prompt as it is"
        )
    with evaluating(model):
        pairs = handle.prompt_keys_and_values()
    prefix = Prefix(length=handle.prompt_length, mlp=None, start=None, shifts=True)
    methods = handle.spec.methods
    remaining = [index for index in range(len(methods)) if index not in prompts[1:]]
    enabled = handle.enabled
    handle.detach()
    spec = sum_of([prefix if index == prompts[0] else methods[index] for index in remaining])
    compiled = attach(model, spec, name=name)
    compiled.enabled = enabled
    others = {n: index for n, index in enumerate(remaining) if index != prompts[0]}
    compiled.copy_from(handle, others)
    for placed in compiled.placed:
        if remaining[placed.index] == prompts[0]:
            k, v = pairs[placed.site.name]
            placed.piece.load({"k": k[0].float(), "v": v[0].float()})
    return compiled
