"""attach, detach, rows: what is set in, for whom, and that refusals leave no mark."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf

import inlay
from inlay.errors import (
    BaseError,
    MergeError,
    NamingError,
    PortError,
    RowsError,
    SiteError,
    SpecError,
)
from inlay.laws.batches import pad_batch
from inlay.laws.case import perturb
from inlay.laws.compare import model_output, relative_error
from inlay.laws.traces import snapshot
from inlay.runtime.trained_heads import classify
from tests import zoo


def ids(count: int = 2, length: int = 6) -> torch.Tensor:
    return torch.randint(8, 99, (count, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("family", "spec", "kind", "said"),
    [
        ("llama", "LoRA", SpecError, "attach takes a method such as LoRA"),
        ("llama", inlay.LoRA(at="cross.q"), SiteError, "this model has no 'cross.q'"),
        ("llama", inlay.LoRA(at=inlay.Where("attn.q", layers=7)), SiteError, "no layer 7: the decoder has 3"),
        ("llama", inlay.LoRA(at=inlay.Where("attn.q", stacks="encoder")), SiteError, "has no encoder"),
        ("llama", inlay.LoRA(at="attn"), SiteError, "LoRA acts on projections"),
        ("llama", inlay.LoRA(at="embed"), SiteError, "LoRA acts on projections"),
        ("llama", inlay.Prefix(at="attn"), SiteError, "Prefix acts on attention"),
        ("llama", inlay.Prompt(at="mlp"), SiteError, "Prompt acts on input embeddings"),
        ("llama", inlay.Houlsby(at="attn.q"), SiteError, "Houlsby acts on sub-layers"),
        ("llama", inlay.Pfeiffer(at="mlp"), SiteError, "Pfeiffer acts on whole blocks"),
        ("vit", inlay.Prompt(), SiteError, "Prompt on ViT.*has no 'embed'"),
        ("gptj", inlay.Prefix(), PortError, "GPTJAttention does not go through .* interface; LoRA"),
        ("deberta", inlay.Prefix(), PortError, "DisentangledSelfAttention does not go through"),
        ("bert", inlay.BitFit() + inlay.LoRA(rank=33), SpecError, "rank 33 is larger than the matrix"),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_refusals_leave_the_model_as_it_was(family: str, spec: Any, kind: Any, said: str) -> None:
    model = zoo.model(family)
    before = snapshot(model)
    with pytest.raises(kind, match=said) as error:
        inlay.attach(model, spec)
    assert "\n" not in str(error.value)
    assert snapshot(model) == before


def test_names() -> None:
    model = zoo.fresh("llama")
    inlay.attach(model, inlay.LoRA(rank=2), name="legal")
    before = snapshot(model)
    with pytest.raises(NamingError, match="'legal' is attached already"):
        inlay.attach(model, inlay.LoRA(rank=2), name="legal")
    for name in ("", "a.b", "a/b", "../x", "a b", None):
        with pytest.raises(NamingError, match="letters, digits"):
            inlay.attach(model, inlay.LoRA(rank=2), name=name)
    with pytest.raises(NamingError, match="around this one"):
        inlay.attach(wrapped(), inlay.LoRA(rank=2), name="outer")
    assert snapshot(model) == before


def wrapped() -> Any:
    """A causal model around a backbone that has an inlay of its own."""
    outer = zoo.fresh("llama")
    inlay.attach(outer.model, inlay.LoRA(rank=2), name="inner")
    return outer


def test_not_a_transformers_model() -> None:
    with pytest.raises(SiteError, match="of type Linear"):
        inlay.attach(torch.nn.Linear(2, 2), inlay.LoRA())  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="of type str"):
        inlay.attach("smollm2", inlay.LoRA())  # type: ignore[arg-type]


def test_flash_attention_has_no_keys_port() -> None:
    model = zoo.fresh("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(PortError, match="sdpa or eager.*set_attn_implementation"):
        inlay.attach(model, inlay.Prefix(mlp=None))
    model.config._attn_implementation_internal = "sdpa"
    assert not inlay.attached(model)
    assert model_output(model, {"input_ids": ids()}).isfinite().all()


@pytest.mark.parametrize("family", ["llama", "bert", "t5", "gemma2", "gpt2"])
def test_eager_and_sdpa_agree_and_switching_is_noticed(family: str) -> None:
    """A user who changes the attention after attach must not lose the prefix in silence."""
    model = zoo.fresh(family)
    handle = inlay.attach(model, inlay.Prefix(length=3, mlp=None))
    perturb(handle)
    inputs = {"input_ids": ids(), "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])}
    if family == "t5":
        inputs["decoder_input_ids"] = ids(2, 3)
    with torch.no_grad():
        one = model_output(model, inputs)
        switched = "sdpa" if "eager" in model.config._attn_implementation else "eager"
        if family != "gemma2":  # soft-capped attention is eager only
            model.set_attn_implementation(switched)
            assert relative_error(model_output(model, inputs)[0], one[0]) < 1e-5
    handle.detach()
    assert "inlay" not in model.config._attn_implementation


def test_two_models_may_share_one_config() -> None:
    config = hf.LlamaConfig(**zoo.GQA)
    a, b = hf.LlamaForCausalLM(config).eval(), hf.LlamaForCausalLM(config).eval()
    plain = model_output(b, {"input_ids": ids()})
    first = inlay.attach(a, inlay.Prefix(length=3, mlp=None))
    second = inlay.attach(b, inlay.Prefix(length=3, mlp=None))
    perturb(second)
    changed = model_output(b, {"input_ids": ids()})
    first.detach()
    assert torch.equal(model_output(b, {"input_ids": ids()}), changed)
    second.detach()
    assert torch.equal(model_output(b, {"input_ids": ids()}), plain)
    assert config._attn_implementation == "sdpa"


def test_enabled_and_several_at_once() -> None:
    model = zoo.fresh("llama")
    inputs = {"input_ids": ids()}
    base = model_output(model, inputs)
    a = inlay.attach(model, inlay.LoRA(rank=2), name="a")
    b = inlay.attach(model, inlay.IA3(), name="b")
    perturb(a), perturb(b)
    both = model_output(model, inputs)
    a.enabled = False
    only_b = model_output(model, inputs)
    b.enabled = False
    assert torch.equal(model_output(model, inputs), base)
    a.enabled = b.enabled = True
    assert torch.equal(model_output(model, inputs), both)
    with inlay.rows(model, ["b", "b"]):
        assert torch.equal(model_output(model, inputs), only_b)
    with inlay.rows(model, [("a", "b"), None]):
        mixed = model_output(model, inputs)
    assert relative_error(mixed[0], both[0]) < 1e-5 and relative_error(mixed[1], base[1]) < 1e-5
    assert sorted(inlay.attached(model)) == ["a", "b"]


def test_rows_refuses_what_cannot_be() -> None:
    model = zoo.fresh("llama")
    with pytest.raises(NamingError, match="no inlay is attached"):
        inlay.rows(model, ["a"])
    inlay.attach(model, inlay.LoRA(rank=2), name="legal")
    with pytest.raises(NamingError, match="'legl'; did you mean 'legal'?"):
        inlay.rows(model, ["legl"])
    with pytest.raises(RowsError, match="one entry a row"):
        inlay.rows(model, "legal")
    with pytest.raises(RowsError, match="at least one"):
        inlay.rows(model, [])
    with pytest.raises(RowsError, match="takes the names of inlays, not legal: LoRA"):
        inlay.rows(model, [inlay.attached(model)["legal"], None])
    with inlay.rows(model, ["legal", None]), pytest.raises(RowsError, match="2 rows, .* has 3"):
        model(input_ids=ids(3))
    model(input_ids=ids(3))  # and afterwards all is well


def test_rows_as_a_plain_call_stays_until_the_next() -> None:
    model = zoo.fresh("llama")
    base = model_output(model, {"input_ids": ids()})
    perturb(inlay.attach(model, inlay.LoRA(rank=2), name="a"))
    whole = model_output(model, {"input_ids": ids()})
    inlay.rows(model, [None])
    assert torch.equal(model_output(model, {"input_ids": ids()}), base)
    inlay.rows(model, None)
    assert torch.equal(model_output(model, {"input_ids": ids()}), whole)


def test_a_detached_handle_says_so() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.LoRA(rank=2))
    assert handle.detach() is model
    for use in (handle.detach, handle.merge, lambda: handle.enabled, lambda: handle.save("x")):
        with pytest.raises(NamingError, match="not attached any more"):
            use()
    assert "detached" in repr(handle)


def test_merge_is_refused_beside_another_and_for_tied_matrices() -> None:
    model = zoo.fresh("llama")
    a = inlay.attach(model, inlay.LoRA(rank=2), name="a")
    b = inlay.attach(model, inlay.LoRA(rank=2), name="b")
    with pytest.raises(MergeError, match="'b' depend on it"):
        a.merge()
    b.detach()
    a.merge()
    tied = zoo.fresh("gpt2")
    assert tied.lm_head.weight is tied.transformer.wte.weight
    handle = inlay.attach(tied, inlay.LoRA(rank=2, at="head"))
    with pytest.raises(MergeError, match="shares its matrix"):
        handle.merge()
    for spec in (inlay.Prefix(length=2, mlp=None), inlay.Prompt(length=2), inlay.Houlsby()):
        other = zoo.fresh("llama")
        handle = inlay.attach(other, inlay.LoRA(rank=2) + spec)
        before = copy.deepcopy(other.model.state_dict())
        with pytest.raises(MergeError, match="cannot be folded"):
            handle.merge()
        assert all(torch.equal(before[k], v) for k, v in other.model.state_dict().items())


def test_a_head_stays_beside_what_is_folded(tmp_path) -> None:
    labels = inlay.Head(labels=("no", "maybe", "yes"), pool="last")
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.LoRA(rank=2) + labels, name="judge")
    with torch.no_grad():
        for parameter in handle.parameters():
            parameter.normal_(0, 0.3)
    ids = torch.arange(12).view(2, 6)

    def class_logits(base) -> torch.Tensor:
        with torch.no_grad():
            return classify(base, base.model(ids).last_hidden_state, torch.ones_like(ids))

    wanted = class_logits(model)
    assert handle.merge() is model and not handle.attached
    kept = inlay.attached(model)["judge"]
    assert kept.spec == labels
    torch.testing.assert_close(class_logits(model), wanted, rtol=1e-4, atol=1e-4)
    path = kept.save(tmp_path / "head.safetensors")
    kept.detach()
    with pytest.raises(BaseError):
        inlay.load(zoo.fresh("llama"), path)
    inlay.load(model, path)
    torch.testing.assert_close(class_logits(model), wanted, rtol=1e-4, atol=1e-4)
    alone = inlay.attached(model)["judge"]
    with pytest.raises(MergeError, match="nothing to fold"):
        alone.merge()
    assert alone.attached


def test_repr_is_the_plan() -> None:
    handle = inlay.attach(zoo.fresh("llama"), inlay.LoRA(rank=2) + inlay.Prefix(length=2, mlp=5))
    said = repr(handle)
    assert "LoRA(rank=2) + Prefix(length=2, mlp=5)" in said
    assert "attn.q" in said and "× 3" in said and "shared" in said
    assert f"{handle.count():,} parameters" in said
    assert handle.count() == sum(p.numel() for p in handle.parameters())


def test_moving_the_model_moves_the_pieces() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.LoRA(rank=2) + inlay.Prefix(length=2, mlp=5))
    model.to("meta")
    assert {p.device.type for p in handle.parameters()} == {"meta"}


def test_output_hidden_states_and_attentions_keep_the_texts_positions() -> None:
    model = zoo.fresh("llama")
    model.set_attn_implementation("eager")
    inlay.attach(model, inlay.Prompt(length=3) + inlay.Prefix(length=2, mlp=None))
    out = model(input_ids=ids(), output_hidden_states=True, output_attentions=True)
    assert {h.shape for h in out.hidden_states} == {(2, 6, 32)}
    assert {a.shape[:3] for a in out.attentions} == {(2, 4, 6)}
    assert out.logits.shape == (2, 6, 99)


def test_hidden_states_show_what_the_pieces_did() -> None:
    """Hooks that record hidden states may have been there first: pieces must act before them."""
    model = zoo.fresh("gpt2")
    model(input_ids=ids(), output_hidden_states=True)  # installs the recording hooks
    handle = inlay.attach(model, inlay.Pfeiffer(bottleneck=3))
    perturb(handle)
    states = model(input_ids=ids(), output_hidden_states=True).hidden_states
    block = model.transformer.h[1]
    seen = []
    block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(input_ids=ids())
    assert torch.equal(states[1], seen[0])


def test_labels_and_losses_do_not_see_prompts() -> None:
    model = zoo.fresh("bert")
    tagger = hf.BertForTokenClassification(hf.BertConfig(**zoo.DIMS, **zoo.IDS, num_labels=3))
    inlay.attach(tagger, inlay.Prompt(length=4))
    out = tagger(input_ids=ids(), labels=torch.zeros(2, 6, dtype=torch.long))
    assert out.logits.shape == (2, 6, 3) and out.loss.isfinite()
    del model


def test_join_pads() -> None:
    batch = pad_batch([{"input_ids": ids(1, 4)}, {"input_ids": ids(1, 6)}], "left")
    assert batch["input_ids"][0, :2].tolist() == [0, 0]


def test_what_is_trained_in_groups_of_methods() -> None:
    spec = inlay.LoRA(rank=2) + inlay.Prefix(length=2, mlp=5) + inlay.Head()
    handle = inlay.attach(zoo.fresh("t5"), spec)
    groups = handle.parameter_groups()
    assert [group.learning_rate for group in groups] == [m.learning_rate() for m in spec.methods]
    flat = [id(p) for group in groups for p in group.parameters]
    assert sorted(flat) == sorted(id(p) for p in handle.parameters())
    assert sum(p.numel() for p in groups[2].parameters) == 2 * 32 + 2
    assert {group.learning_rate for group in handle.parameter_groups(0.5)} == {0.5}


def test_each_method_has_its_own_learning_rate_unless_one_is_given() -> None:
    model = zoo.fresh("llama")
    spec = (
        inlay.Prompt(length=2) + inlay.LoRA(rank=2) + inlay.Prefix(length=2, mlp=None, start=None)
    )
    handle = inlay.attach(model, spec)
    rates = [group.learning_rate for group in handle.parameter_groups()]
    assert rates == [inlay.Prompt.lr, inlay.LoRA.lr, 1e-2]
    assert inlay.Prompt.lr >= 10 * inlay.LoRA.lr
    assert inlay.Prefix(mlp=8).learning_rate() == 1e-4
    assert [group.learning_rate for group in handle.parameter_groups(1e-4)] == [1e-4] * 3


@pytest.mark.parametrize("name", ["keys", "forward", "training"])
def test_names_that_torch_needs_are_refused(name):
    model = zoo.fresh("llama")
    with pytest.raises(NamingError, match="choose another"):
        inlay.attach(model, inlay.LoRA(rank=2), name=name)
    assert not inlay.attached(model)
