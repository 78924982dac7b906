"""The rows of a recipe: fields for all parts, all faults at once, and bad rows in every part."""

import json

import pytest
import torch
import transformers as hf

from inlay.errors import DataError, RecipeError
from inlay.training import Recipe, run
from tests.tasks import tiny as words
from tests.training import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base on disk."""
    folder = tmp_path_factory.mktemp("reading") / "base"
    config = hf.LlamaConfig(
        **{**tiny.CONFIG, "vocab_size": 99},
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=24,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf.LlamaForCausalLM(config).save_pretrained(folder)
    words.tokenizer("decoder").save_pretrained(folder)
    return folder


def recipe(tmp_path, base, data, **more):
    fields = {
        "base": str(base),
        "method": "LoRA(rank=2)",
        "out": str(tmp_path / "out"),
        "training": '{"steps": 1, "batch_size": 2}',
        "task": json.dumps(
            {
                "kind": "classify",
                "template": "{text} it was",
                "by": {"words": {"yes": "good", "no": "bad"}},
            }
        ),
        "data": json.dumps(data),
    }
    return Recipe.load(None, fields | more)


def table(path, rows, header="text;label", encoding="utf-8"):
    path.write_text("".join(f"{line}\n" for line in (header, *rows)), encoding)
    return {"source": str(path)}


GOOD = ["a dog;yes", "a cat;no", "the mat;yes"]


def test_fields_for_all_parts_and_of_one(tmp_path, base):
    """Each column that a part maps itself wins; the recipe prints itself back."""
    plan = recipe(
        tmp_path,
        base,
        {
            "columns": {"text": "review", "label": "stars"},
            "encoding": "cp1252",
            "train": table(tmp_path / "a.csv", ["é;1"], "review;stars", "cp1252"),
            "dev": table(tmp_path / "b.csv", ["é;1"], "words;stars")
            | {"columns": {"text": "words"}, "encoding": "utf-8"},
        },
    )
    parts = plan.data.parts()
    assert parts["train"].columns == {"text": "review", "label": "stars"}
    assert parts["dev"].columns == {"text": "words", "label": "stars"}
    assert list(parts) == ["train", "dev"]
    task = plan.make_task()
    for source in parts.values():
        for data in (source.load(task), source.stream(task)):
            assert {name: next(iter(data)).fields[name] for name in ("text", "label")} == {
                "text": "é",
                "label": "1",
            }
    path = tmp_path / "again.yaml"
    path.write_text(plan.dump())
    assert Recipe.load(path) == plan
    changed = Recipe.load(path, {"data.columns.text": "title"})
    assert changed.data.parts()["train"].columns["text"] == "title"


def test_all_faults_of_a_recipe_in_one_message(tmp_path, base):
    data = {"train": {"source": "x", "limt": 3, "encoding": "utf-9", "delimiter": "ab"}}
    data["columns"] = {"txt": "a", "lable": "b", "text": ["a", "b"]}
    with pytest.raises(RecipeError) as caught:
        recipe(
            tmp_path,
            base,
            data,
            **{"training.lrr": "1", "training.steps": "0", "method": "LoRA(rnk=2)"},
            task=json.dumps({"kind": "classify", "tmplate": "a", "metrc": "b", "max_length": "x"}),
        )
    message = str(caught.value)
    assert "\n" not in message and message.startswith("the recipe has 8 faults: (1) ")
    for needle in (
        "data.train.limt: there is no such field; did you mean 'limit'?",
        "training.lrr: there is no such field; did you mean 'lr'?",
        "training.steps: input should be greater than or equal to 1",
        "method: LoRA has no field 'rnk'; did you mean 'rank'?",
        "data.columns: it has 2 faults: (1) there is no field 'txt' to fill; did you mean 'text'?",
        "there is no field 'lable' to fill; did you mean 'label'?",
        "data.train.encoding: there is no encoding 'utf-9'",
        "data.train.delimiter: delimiter='ab' is not one character",
        "task: task 'classify' has 3 faults: (1) task 'classify' has no field 'tmplate'; did you mean 'template'?; (2)",
        "task 'classify' has no field 'metrc'; did you mean 'metric'?",
        "classify: max_length='x' is impossible",
    ):
        assert needle in message, needle


def test_missing_columns_of_every_part_in_one_message(tmp_path, base):
    plan = recipe(
        tmp_path,
        base,
        {
            "train": table(tmp_path / "a.csv", GOOD, "txt;label"),
            "dev": table(tmp_path / "b.csv", GOOD, "text;lable"),
            "test": table(tmp_path / "c.csv", GOOD),
        },
    )
    with pytest.raises(DataError) as caught:
        run(plan, tiny.quiet())
    message = str(caught.value)
    assert message.startswith("the data has 2 faults: (1) ")
    assert "a.csv:2: there is no column 'text'; did you mean 'txt'?; 2 more rows are bad" in message
    assert "b.csv:2: there is no column 'label'; did you mean 'lable'?" in message
    assert not (tmp_path / "out").exists()


LONG = "one " * 40


def test_bad_rows_of_every_part_are_errors_before_training(tmp_path, base):
    parts = {
        "train": [*GOOD, f"{LONG};yes", f"{LONG};no"],
        "dev": GOOD,
        "test": ["a dog;maybe", *GOOD],
    }
    data = {part: table(tmp_path / f"{part}.csv", rows) for part, rows in parts.items()}
    with pytest.raises(DataError) as caught:
        run(recipe(tmp_path, base, data), tiny.quiet())
    message = str(caught.value)
    assert message.startswith("the data has 2 faults: (1) ")
    assert "train.csv:5: its input is 4" in message and "1 more row is bad, the next at" in message
    assert "test.csv:2: there is no label 'maybe'" in message
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_rows_that_cannot_be_read_and_rows_that_cannot_be_used_are_one_message(tmp_path, base):
    parts = {
        "train": [f"{LONG};yes", *GOOD, "b", "c", f"{LONG};no"],
        "dev": [*GOOD, f"{LONG};no"],
        "test": GOOD,
    }
    data = {part: table(tmp_path / f"{part}.csv", rows) for part, rows in parts.items()}
    with pytest.raises(DataError) as caught:
        run(recipe(tmp_path, base, data), tiny.quiet())
    message = str(caught.value)
    assert message.startswith("the data has 2 faults: (1) ")
    assert "train.csv:6: " in message and "train.csv:2: its input is 4" in message
    assert "2 more rows are bad, the next at" in message and "train.csv:7: mend" in message
    assert "dev.csv:5: its input is 4" in message and "test.csv" not in message
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_bad_rows_of_every_part_are_left_out_on_request(tmp_path, base):
    parts = {
        "train": [*GOOD, f"{LONG};yes", "a dog;", "b"],
        "dev": ["a dog;maybe", *GOOD],
        "test": [*GOOD, f"{LONG};yes"],
    }
    data = {
        part: table(tmp_path / f"{part}.csv", rows) | {"skip_bad": True}
        for part, rows in parts.items()
    }
    console = hf_console()
    outcome = run(recipe(tmp_path, base, data), console)
    assert outcome.test is not None
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    skipped = [(e["skipped"], e["where"].rpartition("/")[2]) for e in log if "skipped" in e]
    assert skipped == [
        ("train", "train.csv:6"),
        ("train", "train.csv:7"),
        ("train", "train.csv:5"),
        ("dev", "dev.csv:2"),
        ("test", "test.csv:5"),
    ]
    text = console.export_text()
    assert "train: 3 rows are left out" in text and "dev: 1 row is left out" in text
    assert "3 rows were left out of train:" in text


def hf_console():
    from rich.console import Console

    return Console(file=tiny.quiet().file, record=True, width=200)


def test_folds_leave_out_bad_rows(tmp_path, base):
    rows = [*GOOD, "a film;no", "the film;yes", "old;no", f"{LONG};no", f"{LONG};yes"]
    data = {"train": table(tmp_path / "a.csv", rows) | {"skip_bad": True}}
    outcome = run(recipe(tmp_path, base, data, folds="2", fold="1"), tiny.quiet())
    assert outcome.test is not None
