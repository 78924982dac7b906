"""train and eval: from a recipe to a file, and from a file to numbers."""

import json

import pytest

from inlay.tasks import Task
from inlay.training.loop.options import Training
from inlay.training.recipes.recipe import Recipe
from inlay_cli.fields import fields_of, takes, train_flags


def test_train_does_what_a_recipe_says(inlay, recipe, tmp_path):
    ran = inlay("train", recipe)
    assert ran.code == 0, ran.err
    assert (tmp_path / "run" / "default.safetensors").exists()
    assert "3 steps" in ran.out
    assert "untouched" in ran.out
    assert f"next: inlay generate {Recipe.load(recipe).base}" in ran.out


def test_train_shows_how_far_it_is_in_all_it_does(inlay, recipe, rows, monkeypatch):
    monkeypatch.setattr("inlay.training.loop.progress.SOON", 0.0)
    monkeypatch.setattr("inlay.training.loop.progress.EVERY", 0.0)
    monkeypatch.setattr("inlay.tasks.base.TOGETHER", 3)
    small = ("--batch-size", "2", "--set", f"data.test.source={rows}")
    ran = inlay("train", recipe, *small)
    assert ran.code == 0, ran.err
    said = [line.split("  ")[0] for line in ran.err.splitlines()]
    seen = [
        one for one in dict.fromkeys(said) if one.startswith(("encoding", "evaluating", "step 1"))
    ]
    assert seen == [
        *("evaluating dev", "encoding train", "encoding dev", "step 1"),
        "evaluating test",  # where rows are encoded as they are needed
    ]
    assert said.count("evaluating dev") == 2  # untouched, and at the end


def test_train_takes_everything_from_flags(inlay, base, rows, tmp_path):
    ran = inlay(
        *("train", "--base", base, "--method", "LoRA(rank=1)", "--task", "generate"),
        *("--train", rows, "--steps", "1", "--batch-size", "2", "--out", tmp_path / "other"),
    )
    assert ran.code == 0, ran.err
    assert (tmp_path / "other" / "default.safetensors").exists()


def test_flags_win_over_the_recipe(inlay, recipe):
    ran = inlay(
        *("train", recipe, "--print-recipe", "--lr", "1e-4", "--method", "Prefix(length=5)"),
        *("--set", "data.train.columns.source=question", "--training.warmup", "0.5"),
    )
    assert ran.code == 0
    assert "lr: 0.0001" in ran.out
    assert "method: Prefix(length=5)" in ran.out
    assert "source: question" in ran.out
    assert "warmup: 0.5" in ran.out


def test_a_printed_recipe_reads_back_as_it_was(inlay, recipe, tmp_path):
    first = inlay("train", recipe, "--print-recipe").out
    again = tmp_path / "again.yaml"
    again.write_text(first)
    assert inlay("train", again, "--print-recipe").out == first
    assert Recipe.load(again) == Recipe.load(recipe)
    assert not (tmp_path / "run").exists()


def test_every_field_of_a_recipe_is_a_flag():
    names = {flag.name for flag in train_flags()}
    assert {f"training.{name}" for name in Training.model_fields} <= names
    assert {"base", "dtype", "method", "name", "out", "seed", "task.kind"} <= names
    assert {f"data.{part}.source" for part in ("train", "dev", "test")} <= names
    assert {"task.template", "task.verbalizer", "task.chat"} <= names


def test_every_training_flag_is_explained():
    for flag in train_flags():
        if flag.panel == "training":
            assert flag.about, flag.name


def test_a_base_that_learns_too_is_saved_whole_and_used_with_its_inlay(
    inlay, recipe, base, tmp_path
):
    ran = inlay("train", recipe, "--base-lr", "1e-2")
    assert ran.code == 0, ran.err
    folder, file = tmp_path / "run" / "base", tmp_path / "run" / "default.safetensors"
    assert (
        f"the base has learned too, so all of it is saved, in {folder}; {file} fits only that base"
        in ran.err.splitlines()
    )
    assert f"next: inlay generate {folder} {file}" in ran.out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["base"], result["path"]) == (str(folder), str(file))
    assert result["parameters"] > result["of"]
    measured = inlay("eval", folder, file, "--json")
    assert measured.code == 0, measured.err
    scores = json.loads(measured.out)
    assert {name: scores[name] for name in result["dev"]} == result["dev"]
    assert inlay("generate", folder, file, "the").code == 0
    assert "was made for another base" in inlay("eval", base, file).error
    again = inlay("train", recipe, "--base-lr", "1e-2")  # the run is over, and the folder stays
    assert again.code == 0 and folder.is_dir()


def test_a_base_learns_without_any_method(inlay, recipe, tmp_path):
    recipe.write_text(recipe.read_text().replace("method: LoRA(rank=2)\n", ""))
    assert "nothing would learn; give a method" in inlay("train", recipe).error
    ran = inlay("train", recipe, "--base-lr", "1e-2")
    assert ran.code == 0, ran.err
    folder, written = tmp_path / "run" / "base", tmp_path / "run" / "recipe.yaml"
    assert f"the base has learned too, so all of it is saved, in {folder}" in ran.err.splitlines()
    assert f"next: inlay eval {folder} --recipe {written}" in ran.out
    assert not (tmp_path / "run" / "default.safetensors").exists()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["path"] is None and result["parameters"] == result["of"]
    measured = inlay("eval", folder, "--recipe", written, "--json")
    assert measured.code == 0, measured.err
    scores = json.loads(measured.out)
    assert {name: scores[name] for name in result["dev"]} == result["dev"]


def test_a_base_learns_below_a_trained_head(inlay, encoder, reviews, tmp_path):
    ran = inlay(
        *("train", "--base", encoder, "--task", "classify", "--train", reviews, "--dev", reviews),
        *("--base-lr", "1e-3", "--steps", "2", "--batch-size", "4", "--out", tmp_path / "run"),
    )
    assert ran.code == 0, ran.err
    file = tmp_path / "run" / "default.safetensors"
    measured = inlay("eval", tmp_path / "run" / "base", file, "--json")
    assert measured.code == 0, measured.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert json.loads(measured.out)["accuracy"] == result["dev"]["accuracy"]


def test_a_base_cannot_learn_in_an_ensemble_or_in_half_precision(inlay, recipe):
    said = inlay("train", recipe, "--base-lr", "1e-2", "--ensemble", "2").error
    assert "leave training.base_lr or ensemble out" in said
    said = inlay("train", recipe, "--base-lr", "1e-2", "--dtype", "bfloat16").error
    assert "load the base with dtype float32" in said


def test_a_wrong_field_gets_the_nearest_name(inlay, recipe):
    assert "did you mean 'patience'?" in inlay("train", recipe, "--set", "training.patence=1").error
    assert "did you mean 'LoRA'?" in inlay("train", recipe, "--method", "lora").error
    assert "training.lr" in inlay("train", recipe, "--lr", "fast").error


def test_a_missing_recipe_is_named(inlay, tmp_path):
    assert "nowhere.yaml" in inlay("train", tmp_path / "nowhere.yaml").error


def spoil(rows, count):
    good = rows.read_text()
    rows.write_text(good + '{"source": "the"}\n' + "not json\n" * (count - 1))


def told(err):
    """What is said of rows that were left out, behind everything else."""
    lines = err.splitlines()
    return lines[next(n for n, line in enumerate(lines) if "left out of" in line) :]


def test_bad_rows_stop_the_run_unless_told(inlay, recipe, rows):
    spoil(rows, 2)
    assert "rows.jsonl:13" in inlay("train", recipe).error


def test_train_says_at_the_end_which_rows_it_left_out(inlay, recipe, rows, tmp_path):
    spoil(rows, 12)
    for _ in range(2):  # the second time the run is over already
        ran = inlay("train", recipe, "--skip-bad-rows")
        assert ran.code == 0, ran.err
        said = told(ran.err)
        assert said[0] == "12 rows were left out of train:"
        assert said[1].startswith(f"  {rows}:13: there is no column 'target'")
        assert said[2].startswith(f"  {rows}:14: not valid JSON")
        assert said[10].startswith(f"  {rows}:22: ") and said[11] == "  and 2 more"
        assert said[12] == "12 rows were left out of dev:"
        assert len(said) == 24
        log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
        assert [one["step"] for one in map(json.loads, log) if "loss" in one] == [1, 2, 3]
        left = [one for one in map(json.loads, log) if "skipped" in one]
        assert [one["where"] for one in left] == 2 * [f"{rows}:{n}" for n in range(13, 25)]
        assert {one["skipped"] for one in left} == {"train", "dev"}
        assert left[1]["reason"].startswith("not valid JSON")


def test_eval_says_at_the_end_which_rows_it_left_out(inlay, base, trained, rows):
    spoil(rows, 1)
    ran = inlay("eval", base, trained, "--data", rows)
    assert "rows.jsonl:13" in ran.error
    ran = inlay("eval", base, trained, "--data", rows, "--skip-bad-rows", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["rows"] == 4  # the recipe's limit
    said = told(ran.err)
    assert said[0] == f"1 row was left out of {rows}:"
    assert said[1].startswith(f"  {rows}:13: there is no column 'target'")
    assert len(said) == 2


def test_eval_reads_the_task_from_the_recipe_beside_the_file(inlay, base, trained):
    ran = inlay("eval", base, trained, "--json")
    assert ran.code == 0, ran.err
    scores = json.loads(ran.out)
    assert scores["rows"] == 4
    assert "bleu" in scores


def test_eval_of_other_rows(inlay, base, trained, rows, tmp_path):
    said = tmp_path / "said.jsonl"
    ran = inlay("eval", base, trained, "--data", rows, "--limit", "7", "--predictions", said)
    assert ran.code == 0, ran.err
    assert "7 rows" in ran.out
    lines = [json.loads(line) for line in said.read_text().splitlines()]
    assert len(lines) == 7
    assert {"source", "target", "said", "where"} <= lines[0].keys()


def test_eval_reads_rows_as_it_needs_them(inlay, base, rows, tmp_path, monkeypatch):
    """With and without a file for the predictions, and a bad row leaves no part of it."""
    monkeypatch.setattr("inlay.training.loop.evaluation.CHUNK", 3)
    held = []
    encode_all = Task.encode_all
    monkeypatch.setattr(
        Task, "encode_all", lambda *given: held.append(len(given[1])) or encode_all(*given)
    )
    monkeypatch.setattr("inlay.training.recipes.recipe.load", None)  # which would read everything
    asked = ("eval", base, "--data", rows, "--task", "generate", "--json")
    ran = inlay(*asked)
    assert ran.code == 0, ran.err
    count = json.loads(ran.out)["rows"]
    assert sum(held) == count and max(held) == 3
    said = tmp_path / "said.jsonl"
    assert inlay(*asked, "--predictions", said).out == ran.out
    assert len(said.read_text().splitlines()) == count
    said.unlink()
    (tmp_path / "more.jsonl").write_text(
        rows.read_text() + json.dumps({"source": "", "target": "a"}) + "\n"
    )
    given = ("--data", tmp_path / "more.jsonl", "--predictions", said)
    assert "its text is empty" in inlay(*asked, *given).error
    assert not list(tmp_path.glob("*said*"))


def test_eval_of_the_base_alone(inlay, base, rows):
    ran = inlay("eval", base, "--data", rows, "--task", "generate")
    assert ran.code == 0, ran.err
    assert "the base alone" in ran.out


def test_eval_needs_a_task_and_rows(inlay, base, rows):
    assert "--task" in inlay("eval", base, "--data", rows).error
    assert "--data" in inlay("eval", base, "--task", "generate").error


def test_eval_of_a_trained_head(inlay, encoder, reviews, tmp_path):
    ran = inlay(
        *("train", "--base", encoder, "--method", "LoRA(rank=1)", "--task", "classify"),
        *("--train", reviews, "--steps", "2", "--out", tmp_path / "head"),
    )
    assert ran.code == 0, ran.err
    file = tmp_path / "head" / "default.safetensors"
    ran = inlay("eval", encoder, file, "--data", reviews, "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert 0 <= told["accuracy"] <= 1
    right = told["confusion"]["no"]["no"] + told["confusion"]["yes"]["yes"]
    assert right == 12 * told["accuracy"]
    assert sum(told["confusion"]["yes"].values()) == 6
    ran = inlay("eval", encoder, file, "--data", reviews)
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["label", "no", "yes"] in lines
    assert ["no", *map(str, told["confusion"]["no"].values())] in lines


def test_a_label_that_training_has_not_seen(inlay, encoder, reviews, tmp_path):
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"text": "a", "label": "yes"}\n{"text": "a", "label": "yess"}\n')
    ran = inlay(
        *("train", "--base", encoder, "--method", "LoRA(rank=1)", "--task", "classify"),
        *("--train", reviews, "--dev", odd, "--out", tmp_path / "out"),
    )
    assert "odd.jsonl:2: there is no label 'yess'; did you mean 'yes'?" in ran.error


def test_folds_are_trained_and_told(inlay, encoder, reviews, tmp_path):
    out = tmp_path / "folds"
    asked = ["--base", encoder, "--method", "LoRA(rank=1)", "--task", "classify"]
    asked += ["--train", reviews, "--steps", "2", "--folds", "3", "--out", out]
    ran = inlay("train", *asked)
    assert ran.code == 0, ran.err
    told = json.loads((out / "folds.json").read_text())
    scores = [*told["folds"], told["mean"], told["sd"]]
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["fold", "1", "fold", "2", "fold", "3", "mean", "sd"] in lines
    assert ["accuracy", *(f"{one['accuracy']:.4f}" for one in scores)] in lines
    assert "fold 3 of 3" in ran.err
    file = out / "fold-2" / "default.safetensors"
    assert "give --data" in inlay("eval", encoder, file).error, "it learned from most of train"
    assert inlay("eval", encoder, file, "--data", reviews).code == 0


CHOICES = [
    {"text": f"the {word}", "choices": ["sat", "was good"], "label": 0}
    for word in ("cat", "dog", "mat")
]
VALUES = [{"text": word, "label": value} for word, value in [("cat", 0.5), ("dog", 2), ("mat", 1)]]
TOPICS = [{"text": word, "labels": [word, "all"]} for word in ("cat", "dog", "mat")]


@pytest.mark.parametrize(
    ("task", "rows", "metric", "said"),
    [
        ("choose --task.by mean", CHOICES, "accuracy", int),
        ("choose", CHOICES, "accuracy", int),
        ("regress", VALUES, "pearson", float),
        ("classify --task.multi_label true", TOPICS, "micro_f1", list),
    ],
)
def test_other_tasks_are_trained_and_measured(inlay, base, tmp_path, task, rows, metric, said):
    data, out = tmp_path / "rows.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = inlay(
        *("train", "--base", base, "--method", "LoRA(rank=1)", "--task", *task.split()),
        *("--task.metric", metric, "--train", data, "--dev", data, "--steps", "2", "--out", out),
    )
    assert ran.code == 0, ran.err
    made, file = tmp_path / "said.jsonl", out / "default.safetensors"
    ran = inlay("eval", base, file, "--data", data, "--json", "--predictions", made)
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told[metric] == json.loads((out / "result.json").read_text())["dev"][metric]
    assert "confusion" not in told
    written = [json.loads(line) for line in made.read_text().splitlines()]
    assert {type(row["said"]) for row in written} == {said}


NAMES = [
    {"tokens": ["the", word, "was", end], "tags": ["O", "B-a", "I-a", "O"]}
    for word, end in [("cat", "good"), ("dog", "bad"), ("mat", "fine"), ("film", "dull")]
]
ROLES = [{**row, "tags": ["O", "A1", "V", "O"], "predicate": 2} for row in NAMES]
ASKED = [
    {"question": "cat", "context": f"{8 * 'the film was '}{word}", "answers": [{"text": word, "start": 104}]}
    for word in ("good", "bad")
] + [{"question": "dog", "context": "dull", "answers": []}]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "rows", "said"),
    [
        ("tag", NAMES, list),
        ("tag --task.scheme plain", ROLES, list),
        ("extract --task.max_length 20 --task.stride 4", ASKED, str),
    ],
)
@pytest.mark.parametrize("kind", ["base", "encoder"])
def test_tags_and_answers_are_trained_and_measured(
    inlay, request, tmp_path, kind, task, rows, said
):
    base, out = request.getfixturevalue(kind), tmp_path / "run"
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = inlay(
        *("train", "--base", base, "--method", "LoRA(rank=1)", "--task", *task.split()),
        *("--train", data, "--dev", data, "--steps", "2", "--eval-every", "1", "--out", out),
    )
    assert ran.code == 0, ran.err
    assert "untouched" in ran.out
    made = tmp_path / "said.jsonl"
    file = out / "default.safetensors"
    ran = inlay("eval", base, file, "--data", data, "--json", "--predictions", made)
    assert ran.code == 0, ran.err
    scores = json.loads(ran.out)
    assert scores["rows"] == len(rows)
    assert scores["f1"] == json.loads((out / "result.json").read_text())["dev"]["f1"]
    written = [json.loads(line) for line in made.read_text().splitlines()]
    assert len(written) == len(rows)
    assert {type(row["said"]) for row in written} == {said}


def test_help_is_read_from_docstrings():
    doc = """What it is.

    one: the first; None
        for none. two, three: the others.
    four: nothing that looks like a: field.
    """
    assert fields_of(doc) == {
        "one": "The first; None for none.",
        "two": "The others.",
        "three": "The others.",
        "four": "Nothing that looks like a: field.",
    }


def test_what_a_flag_takes_is_read_from_its_type():
    kinds = {name: takes(field.annotation) for name, field in Training.model_fields.items()}
    assert kinds["lr"] == "NUMBER"
    assert kinds["steps"] == "INTEGER"
    assert kinds["schedule"] == "linear|cosine|constant"
    assert kinds["dropout"] == "true|false"
    assert kinds["betas"] == "JSON"
