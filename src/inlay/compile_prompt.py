"""compile_prompt: a prompt in front of a causal model as keys and values, which cost no positions.

Nothing behind a prompt changes its hidden states, so its keys and values are the same for every
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

    handle: an inlay with at least one prompt in front of the text (`Prompt`); whatever else is
    in it stays. It is detached. Returns the new inlay, attached under the same name.

    Raises MergeError, with nothing changed, where there is no prompt, where the model is not a
    causal one that is given its positions, or where a sliding window would lose the prompt and
    not the prefix.
    """
    root, model, name = handle.root, handle.model, handle.name
    door, kind = root.doors[0], type(model).__name__
    placed = [(int(key.rsplit("/", 1)[1]), piece) for key, _, piece in handle.pieces()]
    prompts = sorted({number for number, piece in placed if isinstance(piece, PromptVectors)})
    if not prompts:
        raise MergeError(f"{handle.spec!r} has no prompt in front of the text to compile")
    if door.front is None:
        raise MergeError(
            f"a prompt of {kind} sees what stands behind it, or its attention gives no way in; "
            "only prompts of causal models can be compiled"
        )
    if door.stack.window is not None:
        raise MergeError(
            f"{kind} forgets a prompt after {door.stack.window} positions, and would not forget "
            "a prefix; its prompts cannot be compiled"
        )
    with evaluating(model):
        pairs = door.front.heard((name,))
    prefix = Prefix(length=door.slots.length((name,)), mlp=None, start=None, shifts=True)
    left = [number for number in range(len(handle.spec.methods)) if number not in prompts[1:]]
    methods = [prefix if n == prompts[0] else handle.spec.methods[n] for n in left]
    enabled = handle.enabled
    handle.detach()
    made = attach(model, sum_of(methods), name=name)
    made.enabled = enabled
    made.take(handle, dict(enumerate(left)))
    for key, site, piece in made.pieces():
        if left[int(key.rsplit("/", 1)[1])] == prompts[0]:
            k, v = pairs[site.name]
            piece.load({"k": k[0].float(), "v": v[0].float()})
    return made
