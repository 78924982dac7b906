"""Virtual tokens in templates, from `{p}` to the vectors that stand there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import inlay
from inlay.data.template import VIRTUAL_TOKEN, Template
from inlay.errors import DataError, RowsError, TaskError, TrainingError
from inlay.laws.compare import relative_error
from inlay.tasks import Classify, Generate, TrainedHead, Verbalizer
from tests import zoo
from tests.tasks.tiny import examples, tokenizer

V = 99
WORDS = {"yes": "good", "no": "bad"}


def bound(task: Any, family: str, kind: str, **more: Any) -> Any:
    model = zoo.fresh(family)
    task.bind(model, tokenizer(kind, **more))
    return model


def test_a_template_counts_its_virtual_tokens() -> None:
    template = Template("{p*3} {text} {p}{mask} {{p}}")
    assert template.virtual_tokens == 4
    assert template.names == ("text", "mask")
    filled = template.fill({"text": "a", "mask": "M"})
    assert filled == f"{VIRTUAL_TOKEN * 3} a{VIRTUAL_TOKEN}M {{p}}"
    assert Template("{text}").virtual_tokens == 0
    with pytest.raises(DataError, match=r"has \{p\*x\}"):
        Template("{p*x}")
    with pytest.raises(DataError, match="virtual"):
        template.fill({"text": VIRTUAL_TOKEN, "mask": "M"})


@pytest.mark.parametrize(("family", "kind"), [("bert", "encoder"), ("llama", "decoder"),
                                              ("t5", "encoder-decoder")])  # fmt: skip
def test_ids_from_v_on_stand_where_the_template_says(family: str, kind: str) -> None:
    mask = " {mask}" if kind == "encoder" else ""
    task = Classify(template="{p*2} {text} was {p}" + mask, by=Verbalizer(WORDS))
    bound(task, family, kind)
    words = tokenizer(kind)
    row = task.encode(examples({"text": "the dog", "label": "yes"})[0], 0)
    text = words("the dog was", add_special_tokens=False)["input_ids"]
    middle = [V, V + 1, *text, V + 2]
    if kind == "encoder":
        middle = [words.bos_token_id, *middle, words.mask_token_id, words.eos_token_id]
    if kind == "encoder-decoder":
        middle = [*middle, words.eos_token_id]
    assert row.input_ids == middle


def test_vectors_of_real_words_are_feeding_the_words() -> None:
    words = tokenizer("encoder")
    ids = words("film plot dull", add_special_tokens=False)["input_ids"]
    soft = Classify(template="{p*2} {text} {p} {mask}", by=Verbalizer(WORDS))
    hard = Classify(template="film plot {text} dull {mask}", by=Verbalizer(WORDS))
    rows = examples({"text": "the dog", "label": "yes"}, {"text": "a bad cat sat", "label": "no"})
    model = bound(soft, "bert", "encoder")
    hard.bind(model, words)
    with torch.no_grad():
        want = hard.outputs(model, hard.collate(hard.encode_all(rows))).scores
        start = tuple((number,) for number in ids)
        for encoder in (None, "mlp", "lstm"):
            handle = inlay.attach(model, inlay.PTuning(length=3, encoder=encoder, start=start))
            got = soft.outputs(model, soft.collate(soft.encode_all(rows))).scores
            assert relative_error(got, want) < 1e-4, encoder
            handle.detach()


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_the_encoder_is_dropped_in_the_file(encoder: Any, tmp_path: Any) -> None:
    task = Classify(template="{p*2} {text} {p} {mask}", by=Verbalizer(WORDS))
    rows = examples({"text": "the dog", "label": "yes"}, {"text": "a bad cat sat", "label": "no"})
    model = bound(task, "bert", "encoder")
    handle = inlay.attach(model, inlay.PTuning(length=3, encoder=encoder))
    inlay.fit(model, handle, task, rows, steps=2, batch_size=2, lr=0.1)
    model.eval()
    batch = task.collate(task.encode_all(rows))
    with torch.no_grad():
        trained = task.outputs(model, batch).scores
        path = handle.save(tmp_path / "p.safetensors")
        handle.detach()
        loaded = inlay.load(model, path)
        assert loaded.spec == inlay.PTuning(length=3, encoder=None)
        assert loaded.count() == 3 * 32
        assert relative_error(task.outputs(model, batch).scores, trained) < 1e-5


def test_generation_behind_virtual_tokens_is_generation_behind_the_words() -> None:
    words = tokenizer("decoder")
    ids = words("film plot dull", add_special_tokens=False)["input_ids"]
    rows = examples(
        {"source": "the dog", "target": "a"}, {"source": "a bad cat sat", "target": "b"}
    )
    said = []
    for template, start in (
        ("{p*2} {source} {p}", tuple((number,) for number in ids)),
        ("film plot {source} dull", None),
    ):
        task = Generate(template=template, generation={"max_new_tokens": 5})
        model = bound(task, "llama", "decoder")
        if start is not None:
            inlay.attach(model, inlay.PTuning(length=3, encoder=None, start=start))
        said.append(task.predict(model, task.collate(task.encode_all(rows))))
    assert said[0] == said[1]


def test_another_number_than_the_inlay_has_is_refused() -> None:
    rows = examples({"text": "the dog", "label": "yes"}, {"text": "a cat", "label": "no"})
    task = Classify(template="{p*2} {text} {mask}", by=Verbalizer(WORDS))
    model = bound(task, "bert", "encoder")
    handle = inlay.attach(model, inlay.PTuning(length=3))
    with pytest.raises(TrainingError, match="2 virtual tokens .* inlay 3"):
        inlay.fit(model, handle, task, rows, steps=1)
    handle.detach()
    handle = inlay.attach(model, inlay.PTuning(length=1))
    with pytest.raises(RowsError, match="names 2 virtual tokens"):
        task.outputs(model, task.collate(task.encode_all(rows)))


@pytest.mark.parametrize(
    ("template", "count", "placed"),
    [
        ("{text} All in all, it was", 9, "{p*4} {text} {p*5} All in all, it was"),
        ("{text} It was {mask}.", 2, "{p} {text} It was {p} {mask}."),
        (None, 1, "{text} {p}"),
    ],
)
def test_virtual_tokens_find_a_place(template: str | None, count: int, placed: str) -> None:
    by = TrainedHead() if template is None else Verbalizer(WORDS)
    task = Classify(template=template, by=by)
    task.place_virtual_tokens(count, count // 2, examples({"text": "a", "label": "b"}))
    assert task.template == placed
    assert task.virtual_tokens == count


def test_a_pair_is_placed_whole() -> None:
    task = Classify()
    task.place_virtual_tokens(2, 1, examples({"text": "a", "text_pair": "c", "label": "b"}))
    assert task.template == "{p} {text} {text_pair} {p}"


def test_a_long_text_is_cut_and_its_virtual_tokens_stay() -> None:
    task = Classify(template="{p*2} {text} {p}", by=Verbalizer(WORDS), truncate=True, max_length=6)
    bound(task, "llama", "decoder")
    row = task.encode(examples({"text": "the dog sat on the mat", "label": "yes"})[0], 0)
    assert len(row.input_ids) == 6
    assert [number for number in row.input_ids if number >= V] == [V, V + 1, V + 2]


def test_a_task_that_was_bound_before_a_resize_is_bound_again() -> None:
    task = Classify(template="{p*2} {text} was", by=Verbalizer(WORDS))
    model = bound(task, "llama", "decoder")
    row = examples({"text": "the dog", "label": "yes"})
    rows = task.encode_all(row)
    model.resize_token_embeddings(V + 5, mean_resizing=False)
    for use in (lambda: task.encode_all(row), lambda: task.collate(rows)):
        with pytest.raises(TaskError, match=r"had 99 tokens .* has 104 now; call bind"):
            use()
    task.bind(model, tokenizer("decoder"))
    assert task.encode_all(row)[0].input_ids[:2] == [V + 5, V + 6]
