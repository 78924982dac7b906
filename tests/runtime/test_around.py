"""What torch and transformers do around an attached base: dtypes, decoding, pipelines."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import inlay
from inlay.errors import RowsError
from inlay.laws.case import perturb
from inlay.laws.compare import model_output, relative_error, weighted_sum
from tests import zoo
from tests.tasks import tiny

SPEC = inlay.LoRA(rank=2) + inlay.Houlsby(bottleneck=3) + inlay.Prefix(length=2) + inlay.Prompt(length=3)  # fmt: skip
IDS = torch.randint(8, 99, (3, 6), generator=torch.Generator().manual_seed(5))
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [0, 1, 1, 1, 1, 1]])
INPUTS = {"input_ids": IDS, "attention_mask": MASK}
ROWS = ["all", None, "lora"]
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


def dressed(family: str) -> Any:
    model = zoo.fresh(family)
    for number, (name, spec) in enumerate({"all": SPEC, "lora": inlay.LoRA(rank=2)}.items()):
        torch.manual_seed(number)
        perturb(inlay.attach(model, spec, name=name))
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_autocast_computes_the_same_in_fewer_bits_and_trains(family: str, dtype: Any) -> None:
    model = dressed(family)
    inputs = INPUTS if family == "llama" else {"input_ids": IDS}
    with inlay.rows(model, ROWS):
        with torch.no_grad():
            expected = model_output(model, inputs)
        with torch.autocast("cpu", dtype):
            output = model_output(model, inputs)
    text = MASK.bool() if family == "llama" else torch.ones_like(MASK).bool()
    assert relative_error(output[text], expected[text]) < 0.05
    weighted_sum(output).backward()
    for handle in inlay.attached(model).values():
        assert all(p.grad is not None and p.grad.isfinite().all() for p in handle.parameters())


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_a_change_of_dtype_after_attaching_takes_the_pieces_along(
    family: str, tmp_path: Path
) -> None:
    model = dressed(family)
    inputs = {"input_ids": IDS} | ({"decoder_input_ids": IDS[:, :3]} if family == "t5" else {})
    with torch.no_grad(), inlay.rows(model, ROWS):
        expected = model_output(model, inputs)
        assert relative_error(model_output(model.double(), inputs), expected) < 1e-5
        path = inlay.attached(model)["all"].save(tmp_path / "x.safetensors")
        half = model_output(model.to(torch.bfloat16), inputs)
    assert {p.dtype for p in inlay.attached(model)["all"].parameters()} == {torch.bfloat16}
    assert relative_error(half, expected) < 0.1
    inlay.attached(model)["all"].detach()
    inlay.load(model, path)
    with torch.no_grad(), inlay.rows(model, ROWS):
        assert relative_error(model_output(model, inputs), expected) < 0.1


@pytest.mark.parametrize("more", [{"cache_implementation": "static"}, {"num_beams": 3}], ids=str)
def test_static_caches_and_beams_give_what_each_row_gives_alone(more: dict[str, Any]) -> None:
    model = dressed("llama")
    with inlay.rows(model, ROWS):
        together = model.generate(**INPUTS, **GREEDY, **more)
    for number, name in enumerate(ROWS):
        with inlay.rows(model, [name]):
            alone = model.generate(IDS[[number]][:, MASK[number].bool()], **GREEDY, **more)
        assert torch.equal(together[number, -6:], alone[0, -6:])


@pytest.mark.parametrize("helped_by", [None, "all"])
def test_assisted_decoding_writes_what_greedy_decoding_writes(helped_by: str | None) -> None:
    model, assistant = dressed("llama"), dressed("llama")
    for name in ROWS:
        with inlay.rows(model, [name]), inlay.rows(assistant, [helped_by]):
            expected = model.generate(IDS[:1], **GREEDY)
            helped = model.generate(IDS[:1], assistant_model=assistant, **GREEDY)
        assert torch.equal(helped, expected)


def test_pipelines_serve_the_inlay() -> None:
    tokenizer = tiny.tokenizer("decoder")
    model = dressed("llama")
    texts = [" ".join(tiny.WORDS[3:6]), " ".join(tiny.WORDS[5:10])]
    model.generation_config.pad_token_id = 0
    for name in ("all", "lora", None):
        with inlay.rows(model, [name]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            generator = hf.pipeline("text-generation", model=model, tokenizer=tokenizer)
            options = {k: v for k, v in GREEDY.items() if k != "pad_token_id"}
            answers = generator(texts, **options, return_full_text=False)
            for text, (answer,) in zip(texts, answers, strict=True):
                ids = tokenizer(text, return_tensors="pt")["input_ids"]
                written = model.generate(ids, **GREEDY)[0, ids.shape[1] :]
                assert answer["generated_text"].split() == tokenizer.decode(written, skip_special_tokens=True).split()  # fmt: skip
    config = zoo.fresh("bert").config
    classifier = hf.BertForSequenceClassification(config).eval()
    perturb(inlay.attach(classifier, SPEC, name="all"))
    words = tiny.tokenizer("encoder")
    pipe = hf.pipeline("text-classification", model=classifier, tokenizer=words, top_k=None)
    for name in ("all", None):
        with inlay.rows(classifier, [name]), torch.no_grad():
            scores = [{x["label"]: x["score"] for x in row} for row in pipe(texts, batch_size=2)]
            for text, found in zip(texts, scores, strict=True):
                logits = classifier(**words(text, return_tensors="pt")).logits
                assert found["LABEL_1"] == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-5)


def test_a_resized_vocabulary_never_gives_virtual_ids_another_meaning() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.LoRA(rank=2) + inlay.PTuning(length=3), name="a")
    perturb(handle)
    first = handle.first_virtual_id
    ids = torch.tensor([[9, first, first + 1, 11, 12]])
    with torch.no_grad():
        expected = model_output(model, {"input_ids": ids})
        plain = model_output(model, {"input_ids": IDS})
    model.resize_token_embeddings(first + 5, mean_resizing=False)
    with pytest.raises(RowsError, match=f"had {first} tokens .* has {first + 5} now"):
        model(input_ids=ids)
    state = handle.training_state()
    handle.detach()
    again = inlay.attach(model, inlay.LoRA(rank=2) + inlay.PTuning(length=3), name="a")
    again.load_training_state(state)
    moved = torch.where(ids >= first, ids + 5, ids)
    with torch.no_grad():
        assert relative_error(model_output(model, {"input_ids": moved})[..., :first], expected) < 1e-5  # fmt: skip
        assert relative_error(model_output(model, {"input_ids": IDS})[..., :first], plain) < 1e-5
