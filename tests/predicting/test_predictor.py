"""inlay.open: a file is enough, and rows come in every form that people have them in."""

import json
import sys
import types

import pandas
import pytest
import torch
from datasets import Dataset

import inlay
from inlay.errors import DataError, FetchError, FileError, TaskError
from inlay.files.format import read
from inlay.files.usage import KEY
from inlay.predicting import read_usage
from inlay.tasks import Classify
from tests.predicting.conftest import REVIEWS, train
from tests.tasks import tiny

TEXTS = ["the film was good", "a dull film", "it was not bad"]


def test_a_file_is_enough(predictor, reviews):
    assert isinstance(predictor, inlay.Predictor)
    assert predictor.task.labels == ("no", "yes")
    assert repr(predictor).startswith("Predictor('default': classify on ")
    record = predictor.predict(TEXTS[0])
    assert list(record) == ["prediction", "probability", "probabilities"]
    assert record["prediction"] in ("no", "yes")
    assert [column.name for column in predictor.columns] == list(record)


def test_nothing_is_in_training_mode(predictor):
    """So threads that predict side by side cannot switch dropout on for each other."""
    assert not any(module.training for module in predictor.model.modules())
    predictor.predict(TEXTS)
    assert not any(module.training for module in predictor.model.modules())


def test_its_predictions_are_those_of_the_run(folder, predictor):
    expected = inlay.training.predict(predictor.model, predictor.task, TEXTS)
    assert [record["prediction"] for record in predictor.predict(TEXTS)] == expected


def test_rows_in_every_form(predictor, monkeypatch):
    expected = predictor.predict(TEXTS)
    rows = [{"text": text, "label": None} for text in TEXTS]
    frame = pandas.DataFrame({"text": TEXTS, "stars": [1.0, None, 3.0]})
    for data in (rows, tuple(TEXTS), iter(TEXTS), frame, frame["text"], Dataset.from_list(rows)):
        assert predictor.predict(data) == expected
    assert predictor.predict(rows[0]) == expected[0]

    class Frame:
        def iter_rows(self, named):
            assert named
            return iter(rows)

    monkeypatch.setitem(sys.modules, "polars", types.SimpleNamespace(DataFrame=Frame))
    assert predictor.predict(Frame()) == expected
    assert predictor.predict([]) == []


def test_columns_of_other_names(folder, predictor):
    rows = [{"review": text} for text in TEXTS]
    expected = predictor.predict(TEXTS)
    assert predictor.predict(rows, columns={"text": "review"}) == expected
    with pytest.raises(DataError, match="rows#1: there is no column 'text'"):
        predictor.predict(rows)
    with pytest.raises(DataError, match="no task reads a field 'txt'"):
        predictor.predict(rows, columns={"txt": "review"})


def test_the_columns_of_training_are_known(folder):
    renamed = [{"review": row["text"], "stars": row["label"]} for row in REVIEWS]
    source = {"columns": {"text": "review", "label": "stars"}}
    path = folder / "renamed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in renamed))
    task, data = {"kind": "classify"}, {"train": {"source": str(path), **source}}
    outcome = train(folder, "other", "bert", task, [], data=data)
    opened = inlay.open(outcome.path)
    assert opened.usage.columns == source["columns"]
    expected = opened.predict(TEXTS)
    assert opened.predict([{"review": text} for text in TEXTS]) == expected
    assert opened.predict([{"text": text} for text in TEXTS]) == expected


def test_a_bad_row_is_named(predictor):
    for row, reason in (
        ({"text": " "}, "its text is empty"),
        ({"text": ["a"]}, "column 'text'"),
        ({"x": 1}, "no column 'text'"),
    ):
        with pytest.raises(DataError, match="rows#2: .*" + reason):
            predictor.predict([TEXTS[0], row])
    with pytest.raises(DataError, match=r"rows#1: expected an object of columns, found a number"):
        predictor.predict([5])


def test_probabilities_are_calibrated(predictor):
    calibration = predictor.usage.calibration
    assert calibration["rows"] == 12
    records = predictor.predict(TEXTS)
    temperature = calibration["temperature"]
    plain = inlay.Predictor(
        predictor.model,
        predictor.tokenizer,
        predictor.handle,
        predictor.task,
        type(predictor.usage)(base="x", task={}),
    ).predict(TEXTS)
    for record, other in zip(records, plain, strict=True):
        scores = torch.tensor(list(other["probabilities"].values())).log() / temperature
        assert list(record["probabilities"].values()) == pytest.approx(
            scores.softmax(0).tolist(), abs=1e-4
        )
    assert temperature != 1


# -------------------------------------------------------------------------------- what it writes


def test_text_is_written_whole_and_piece_by_piece(writer):
    opened = inlay.open(writer)
    prompts = ["the cat", "the dog"]
    texts = opened.generate(prompts)
    assert texts == [record["prediction"] for record in opened.predict(prompts)]
    assert opened.generate(prompts[0]) == texts[0]
    pieces = list(opened.stream(prompts[0]))
    assert "".join(pieces) == texts[0]
    assert len(pieces) > 1
    long = opened.generate(prompts[0], max_new_tokens=12)
    assert long.startswith(texts[0]) and len(long) > len(texts[0])
    assert opened.generate({"source": prompts[0]}) == texts[0]


def test_a_stream_that_nobody_reads_ends(writer):
    import threading

    opened, before = inlay.open(writer), threading.active_count()
    pieces = opened.stream("the cat", max_new_tokens=40)
    next(pieces)
    pieces.close()
    assert threading.active_count() == before


def test_what_generation_refuses(writer, predictor):
    opened = inlay.open(writer)
    with pytest.raises(TaskError, match="was trained to classify, not to write"):
        predictor.generate("a")
    with pytest.raises(TaskError, match="max_new_token.*did you mean"):
        opened.generate("a", max_new_token=3)
    with pytest.raises(TaskError, match="stream with num_beams=1"):
        list(opened.stream("the cat", num_beams=2))
    with pytest.raises(DataError, match="its text is empty"):
        list(opened.stream(" "))


# -------------------------------------------------------------------------------- what files say


def test_the_header_says_base_and_task(reviews, folder):
    usage = read(reviews).usage
    assert usage.base == str(folder / "bert")
    assert usage.task["task"] == "classify"
    assert usage.task["by"] == {"kind": "trained_head", "labels": ["no", "yes"]}
    assert read_usage(reviews) == usage


def test_a_chat_is_written_as_in_training(folder, tmp_path):
    import transformers

    base = folder / "chatting"
    transformers.AutoModelForCausalLM.from_pretrained(folder / "llama").save_pretrained(base)
    tiny.tokenizer("decoder", chat=tiny.CHAT).save_pretrained(base)
    rows = [{"source": f"the {word}", "target": word} for word in tiny.WORDS[:8]]
    task = {"kind": "generate", "chat": True, "system": "be good"}
    outcome = train(folder, "chat", "chatting", task, rows)
    opened = inlay.open(outcome.path)
    assert opened.task.chat is True and opened.task.system == "be good"
    assert opened.usage.chat_template == tiny.CHAT
    same = inlay.open(outcome.path, base=folder / "llama")  # whose tokenizer has no template
    assert same.generate("the cat") == opened.generate("the cat")


def test_a_file_of_an_earlier_version_reads_the_recipe_next_to_it(folder, reviews, tmp_path):
    opened = inlay.open(reviews)
    (tmp_path / "old").mkdir()
    old = opened.handle.save(tmp_path / "old" / "default.safetensors")
    assert KEY not in read(old).header
    with pytest.raises(FileError, match=r"neither its base nor its task.*no recipe.yaml"):
        inlay.open(old)
    (old.parent / "recipe.yaml").write_text((reviews.parent / "recipe.yaml").read_text())
    again = inlay.open(old)
    assert again.task.labels == ("no", "yes")  # of the trained head
    assert [r["prediction"] for r in again.predict(TEXTS)] == [
        r["prediction"] for r in opened.predict(TEXTS)
    ]
    (old.parent / "recipe.yaml").unlink()
    task = {"task": "classify"}
    assert isinstance(inlay.open(old, base=folder / "bert", task=task).task, Classify)


def test_a_base_that_is_elsewhere(folder, reviews, tmp_path, monkeypatch):
    moved = tmp_path / "moved.safetensors"
    opened = inlay.open(reviews)
    usage = type(opened.usage)(**{**vars(opened.usage), "base": str(tmp_path / "gone")})
    opened.handle.save(moved, usage=usage)
    with pytest.raises(FetchError, match=r"was trained on '.*gone', which is not to be found"):
        inlay.open(moved)
    assert inlay.open(moved, base=folder / "bert").predict("a film")
    usage = type(usage)(**{**vars(usage), "base": "bert", "beside": True})
    near = opened.handle.save(folder / "near.safetensors", usage=usage)
    monkeypatch.chdir(tmp_path)
    assert inlay.open(near).predict("a film")


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "{}",
        '{"base": 1, "task": {}}',
        "not JSON",
        '{"base": "b", "task": {}, "calibration": {"temperature": -1}}',
    ],
)
def test_a_header_that_says_nonsense(text, tmp_path):
    from inlay.files.usage import usage_of

    with pytest.raises(FileError, match="what it says of its base and task cannot be read"):
        usage_of(tmp_path / "x", {KEY: text})
