"""Activations that learn between a text and its answer: who sees them, and where they go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import inlay
from inlay import Infix, LoRA, Prefix, Prompt, PTuning
from inlay.laws.batches import first_virtual_id, pad_batch
from inlay.laws.case import perturb
from inlay.laws.compare import relative_error
from inlay.tasks import Generate
from tests import zoo

TEXT = [11, 12, 13, 14, 15, 16]


def batch(model: Any, *rows: list[int], side: str = "left") -> dict[str, Tensor]:
    """Rows of ids, where -n is the n-th virtual token, padded on one side."""
    first = first_virtual_id(model)
    singles = []
    for row in rows:
        ids = torch.tensor([[n if n >= 0 else first - n - 1 for n in row]])
        singles.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return pad_batch(singles, side)


def attach(model: Any, spec: Any, name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    handle = inlay.attach(model, spec, name=name)
    perturb(handle)
    return handle


@pytest.mark.parametrize("mlp", [None, 5])
def test_it_begins_as_the_words_it_starts_from(mlp: int | None) -> None:
    model = zoo.fresh("llama")
    plain = model(**batch(model, [*TEXT, 21, 22, 23])).logits
    inlay.attach(model, Infix(length=2, mlp=mlp, start=(21, 22)))
    assert relative_error(model(**batch(model, [*TEXT, -1, -2, 23])).logits, plain) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_only_what_follows_sees_it(family: str) -> None:
    model = zoo.fresh(family)
    row = batch(model, [*TEXT, -1, -2, 23, 24])
    handle = inlay.attach(model, Infix(length=2, mlp=None, start=(21, 22)))
    before = model(**row).logits
    for _, _, piece in zoo.pieces(handle):
        if not hasattr(piece, "length"):
            torch.nn.init.normal_(piece.values)
    after = model(**row).logits
    assert torch.equal(after[:, : len(TEXT)], before[:, : len(TEXT)])
    assert relative_error(after[:, -2:], before[:, -2:]) > 1e-2


def test_offsets_are_added_to_keys_and_values() -> None:
    model = zoo.fresh("llama")
    spec = PTuning(length=1, encoder=None) + Infix(length=2, mlp=None)
    handle = attach(model, spec, "here")
    row = batch(model, [*TEXT[:2], -1, -2, -3, *TEXT[3:]])
    right = model(**row).logits
    embeds = handle.model.get_input_embeddings()(row["input_ids"].clamp(max=20)).detach()
    offsets = {}
    for _, site, piece in zoo.pieces(handle):
        if site.role == "embed":
            place = 3 if piece.before == 0 and piece.length == 2 else 2
            embeds[0, place : place + piece.length] = piece.values.detach()
        else:
            offsets[site.host] = piece.values.detach()
    handle.detach()
    hooks = []
    for host, offset in offsets.items():

        def add(module: Any, args: Any, output: Tensor, offset: Tensor = offset) -> Tensor:
            output = output.clone()
            output[0, 3:5] += offset
            return output

        hooks.append(host.register_forward_hook(add))
    assert len(hooks) == 2 * model.config.num_hidden_layers
    assert relative_error(model(inputs_embeds=embeds).logits, right) < 1e-5
    for hook in hooks:
        hook.remove()


def inlays(model: Any) -> list[tuple[Any, list[int]]]:
    """Inlays of all kinds, and a text for each."""
    attach(model, Infix(length=2, mlp=None), "infix", 1)
    attach(model, Infix(length=3, mlp=4), "longer", 2)
    attach(model, PTuning(length=2, encoder=None), "words", 3)
    attach(model, Infix(length=1, mlp=None) + Prompt(length=3), "prompted", 4)
    attach(model, PTuning(length=1, encoder=None) + Infix(length=2, mlp=None), "both", 5)
    attach(model, LoRA(rank=2) + Prefix(length=2, mlp=None), "others", 6)
    return [
        ("infix", [*TEXT, -1, -2]),
        ("longer", [*TEXT[:2], -1, -2, -3, 30]),
        (None, [31, 32, 33]),
        (("words", "infix"), [-1, 34, 35, -2, 36, -3, -4]),
        ("prompted", [37, 38, -1]),
        ("both", [-1, *TEXT, -2, -3]),
        (("others", "longer"), [39, 40, 41, -1, -2, -3]),
        ("words", [-2, 42, -1]),
    ]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_rows_are_served_as_if_alone(family: str, side: str, checkpointing: bool) -> None:
    model = zoo.fresh(family).train()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    rows = inlays(model)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    whole = batch(model, *(text for _, text in rows), side=side)
    if side == "left":  # GPT-2 and BERT by themselves count the padding, in rows without an inlay
        counted = whole["attention_mask"].cumsum(1) - 1
        whole["position_ids"] = counted.clamp(min=0)
    parameters = list(model.inlays.parameters())

    def learned(names: list[Any], given: dict[str, Tensor]) -> list[Tensor]:
        mask = given["attention_mask"][..., None]
        with inlay.rows(model, names):
            loss = (model(**given).logits * mask).square().sum()
        with inlay.rows(model, ["infix"]):  # another pass comes in between
            model(**batch(model, [1, -1, -2, 3]))
        if loss.requires_grad:
            loss.backward()
        found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        model.zero_grad()
        return [loss.detach(), *found]

    together = learned([name for name, _ in rows], whole)
    alone = [learned([name], batch(model, text)) for name, text in rows]
    for one, several in zip(together, zip(*alone, strict=True), strict=True):
        assert relative_error(one, torch.stack(several).sum(0)) < 1e-4


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_write_as_if_alone(family: str, how: dict[str, Any]) -> None:
    model = zoo.fresh(family).eval()
    rows = inlays(model)
    new = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0, **how}

    def written(names: list[Any], given: dict[str, Tensor]) -> Tensor:
        with inlay.rows(model, names):
            return model.generate(**given, **new)[:, given["input_ids"].shape[1] :]

    whole = written([n for n, _ in rows], batch(model, *(text for _, text in rows)))
    for number, (name, text) in enumerate(rows):
        assert torch.equal(whole[number], written([name], batch(model, text))[0])


def test_an_opening_of_virtual_tokens_runs_once() -> None:
    model = zoo.fresh("llama")
    attach(model, Infix(length=4, mlp=None) + Prompt(length=2), "here")
    opening = [50, 51, 52, -1, -2, 53, -3, -4, 54, 55]
    whole = batch(model, *([*opening, *TEXT[n:]] for n in range(4)))
    prefix = model.inlays.stacks[0].prefix
    openings = []
    model.model.layers[0].register_forward_pre_hook(
        lambda module, args: openings.append(prefix.view and prefix.view.prefix.opening)
    )
    once = model(**whole).logits
    assert openings == [None, len(opening)]  # the prefix itself, then the rows with it
    prefix.enabled = False
    mask = whole["attention_mask"][..., None]
    assert relative_error(once * mask, model(**whole).logits * mask) < 1e-5


def test_it_stands_behind_the_text_where_no_template_says_where() -> None:
    task = Generate(template="{source} =")
    piece = inlay.attach(zoo.fresh("llama"), Infix(length=3)).placed[0].piece
    task.place_virtual_tokens(3, piece.before, [])
    assert task.template == "{source} {p*3} ="


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Infix(length=0), "above 0"),
        (lambda: Infix(start="rare"), "'common' or token ids"),
        (lambda: Infix(length=2, start=(1,)), "1 token ids for 2 positions"),
        (lambda: inlay.attach(zoo.fresh("llama"), Infix(at="attn.k")), "'embed'"),
        (lambda: inlay.attach(zoo.fresh("llama"), Infix(at=("embed", "mlp.up"))), "mlp.up"),
    ],
)
def test_refused(make: Any, said: str) -> None:
    with pytest.raises(inlay.InlayError, match=said):
        make()
