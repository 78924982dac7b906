"""train and eval: from a recipe to a file, and from a file to numbers."""

import json
import shlex

import pytest

from inlay.tasks import Task
from inlay.training.loop.options import Training
from inlay.training.recipes.recipe import Recipe
from inlay_cli.fields import parse_docstring, train_flags, value_of


def test_train_trains_what_a_recipe_describes(inlay, recipe, tmp_path):
    run = inlay("train", recipe)
    assert run.code == 0, run.err
    assert (tmp_path / "run" / "default.safetensors").exists()
    assert "3 steps" in run.out
    assert "untouched" in run.out
    assert f"next: inlay generate {Recipe.load(recipe).base}" in run.out


def test_train_shows_progress_of_every_part(inlay, recipe, rows, monkeypatch):
    monkeypatch.setattr("inlay.training.loop.progress.FIRST_LINE_AFTER", 0.0)
    monkeypatch.setattr("inlay.training.loop.progress.LINE_EVERY", 0.0)
    monkeypatch.setattr("inlay.tasks.base.ENCODED_TOGETHER", 3)
    small = ("--batch-size", "2", "--set", f"data.test.source={rows}")
    run = inlay("train", recipe, *small)
    assert run.code == 0, run.err
    lines = [line.split("  ")[0] for line in run.err.splitlines()]
    parts = ("encoding", "evaluating", "step 1")
    assert [line for line in dict.fromkeys(lines) if line.startswith(parts)] == [
        *("evaluating dev", "encoding train", "encoding dev", "step 1"),
        "evaluating test",  # where rows are encoded as they are needed
    ]
    assert lines.count("evaluating dev") == 2  # untouched, and at the end


def test_train_takes_everything_from_flags(inlay, base, rows, tmp_path):
    run = inlay(
        *("train", "--base", base, "--method", "LoRA(rank=1)", "--task", "generate"),
        *("--train", rows, "--steps", "1", "--batch-size", "2", "--out", tmp_path / "other"),
    )
    assert run.code == 0, run.err
    assert (tmp_path / "other" / "default.safetensors").exists()


def test_flags_win_over_the_recipe(inlay, recipe):
    run = inlay(
        *("train", recipe, "--print-recipe", "--lr", "1e-4", "--method", "Prefix(length=5)"),
        *("--set", "data.train.columns.source=question", "--training.warmup", "0.5"),
    )
    assert run.code == 0
    assert "lr: 0.0001" in run.out
    assert "method: Prefix(length=5)" in run.out
    assert "source: question" in run.out
    assert "warmup: 0.5" in run.out


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
    assert {"task.template", "task.by.words", "task.chat"} <= names


def test_every_flag_of_rows_and_training_is_explained():
    for flag in train_flags():
        if flag.panel in ("Training", "Data"):
            assert flag.about, flag.name


def test_a_trained_base_is_saved_whole_and_used_with_its_inlay(inlay, recipe, base, tmp_path):
    run = inlay("train", recipe, "--base-lr", "1e-2")
    assert run.code == 0, run.err
    folder, file = tmp_path / "run" / "base", tmp_path / "run" / "default.safetensors"
    assert (
        f"the base was trained too and is saved in {folder}; {file} fits only that base"
        in run.err.splitlines()
    )
    assert f"next: inlay generate {folder} {file}" in run.out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["base"], result["path"]) == (str(folder), str(file))
    assert result["parameters"] > result["base_parameters"]
    evaluation = inlay("eval", folder, file, "--json")
    assert evaluation.code == 0, evaluation.err
    scores = json.loads(evaluation.out)
    assert {name: scores[name] for name in result["dev"]} == result["dev"]
    assert inlay("generate", folder, file, "the").code == 0
    assert "was made for another base" in inlay("eval", base, file).error
    again = inlay("train", recipe, "--base-lr", "1e-2")  # the run is over, and the folder stays
    assert again.code == 0 and folder.is_dir()


def test_a_base_learns_without_any_method(inlay, recipe, tmp_path):
    recipe.write_text(recipe.read_text().replace("method: LoRA(rank=2)\n", ""))
    assert "nothing would be trained; give a method" in inlay("train", recipe).error
    run = inlay("train", recipe, "--base-lr", "1e-2")
    assert run.code == 0, run.err
    folder, copy = tmp_path / "run" / "base", tmp_path / "run" / "recipe.yaml"
    assert f"the base was trained too and is saved in {folder}" in run.err.splitlines()
    assert f"next: inlay eval {folder} --recipe {copy}" in run.out
    assert not (tmp_path / "run" / "default.safetensors").exists()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["path"] is None and result["parameters"] == result["base_parameters"]
    evaluation = inlay("eval", folder, "--recipe", copy, "--json")
    assert evaluation.code == 0, evaluation.err
    scores = json.loads(evaluation.out)
    assert {name: scores[name] for name in result["dev"]} == result["dev"]


def test_a_base_learns_below_a_trained_head(inlay, encoder, reviews, tmp_path):
    run = inlay(
        *("train", "--base", encoder, "--task", "classify", "--train", reviews, "--dev", reviews),
        *("--base-lr", "1e-3", "--steps", "2", "--batch-size", "4", "--out", tmp_path / "run"),
    )
    assert run.code == 0, run.err
    file = tmp_path / "run" / "default.safetensors"
    evaluation = inlay("eval", tmp_path / "run" / "base", file, "--json")
    assert evaluation.code == 0, evaluation.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert json.loads(evaluation.out)["accuracy"] == result["dev"]["accuracy"]


def test_a_base_cannot_learn_in_an_ensemble_or_in_half_precision(inlay, recipe):
    message = inlay("train", recipe, "--base-lr", "1e-2", "--ensemble", "2").error
    assert "leave training.base_lr or ensemble out" in message
    message = inlay("train", recipe, "--base-lr", "1e-2", "--dtype", "bfloat16").error
    assert "load the base with dtype float32" in message


def test_a_wrong_field_gets_the_nearest_name(inlay, recipe):
    assert "did you mean 'patience'?" in inlay("train", recipe, "--set", "training.patence=1").error
    assert "did you mean 'LoRA'?" in inlay("train", recipe, "--method", "lora").error
    assert "training.lr" in inlay("train", recipe, "--lr", "fast").error


def test_a_missing_recipe_is_named(inlay, tmp_path):
    assert "nowhere.yaml" in inlay("train", tmp_path / "nowhere.yaml").error


def spoil(rows, count):
    good = rows.read_text()
    rows.write_text(good + '{"source": "the"}\n' + "not json\n" * (count - 1))


def left_out(err):
    """The lines about rows that were left out, which come last."""
    lines = err.splitlines()
    return lines[next(n for n, line in enumerate(lines) if "left out of" in line) :]


def test_bad_rows_stop_the_run_without_skip_bad_rows(inlay, recipe, rows):
    spoil(rows, 2)
    assert "rows.jsonl:13" in inlay("train", recipe).error


def test_eval_names_rows_that_cannot_be_read_and_rows_that_cannot_be_used(inlay, trained, rows):
    long = json.dumps({"source": "the " * 90, "target": "cat"})
    rows.write_text(f"{rows.read_text()}{long}\nnot json\n")
    error = inlay("eval", trained, "--data", rows).error
    assert "rows.jsonl:14: not valid JSON" in error and "rows.jsonl:13: its" in error
    assert "--skip-bad-rows" in error


def test_train_lists_the_rows_it_left_out_at_the_end(inlay, recipe, rows, tmp_path):
    spoil(rows, 12)
    for _ in range(2):  # the second time the run is over already
        run = inlay("train", recipe, "--skip-bad-rows")
        assert run.code == 0, run.err
        lines = left_out(run.err)
        assert lines[0] == "12 rows were left out of train:"
        assert lines[1].startswith(f"  {rows}:13: there is no column 'target'")
        assert lines[2].startswith(f"  {rows}:14: not valid JSON")
        assert lines[10].startswith(f"  {rows}:22: ") and lines[11] == "  and 2 more"
        assert lines[12] == "12 rows were left out of dev:"
        assert len(lines) == 24
        log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
        assert [entry["step"] for entry in map(json.loads, log) if "loss" in entry] == [1, 2, 3]
        skipped = [entry for entry in map(json.loads, log) if "skipped" in entry]
        assert [entry["where"] for entry in skipped] == 2 * [f"{rows}:{n}" for n in range(13, 25)]
        assert {entry["skipped"] for entry in skipped} == {"train", "dev"}
        assert skipped[1]["reason"].startswith("not valid JSON")


def test_eval_lists_the_rows_it_left_out_at_the_end(inlay, base, trained, rows):
    spoil(rows, 1)
    run = inlay("eval", base, trained, "--data", rows)
    assert "rows.jsonl:13" in run.error
    run = inlay("eval", base, trained, "--data", rows, "--skip-bad-rows", "--json")
    assert run.code == 0, run.err
    assert json.loads(run.out)["rows"] == 4  # the recipe's limit
    lines = left_out(run.err)
    assert lines[0] == f"1 row was left out of {rows}:"
    assert lines[1].startswith(f"  {rows}:13: there is no column 'target'")
    assert len(lines) == 2


def test_eval_of_a_new_file_drops_what_chose_rows_of_the_old_one(
    inlay, base, recipe, rows, tmp_path
):
    folder = tmp_path / "splits"
    folder.mkdir()
    for split in ("train", "dev"):
        (folder / f"{split}.jsonl").write_text(rows.read_text())
    recipe.write_text(
        recipe.read_text().replace(
            f"dev: {{source: {rows}, limit: 4}}",
            f"dev: {{source: {folder}, split: dev, limit: 4, columns: {{target: target}}}}",
        )
    )
    assert inlay("train", recipe).code == 0
    file = tmp_path / "run" / "default.safetensors"
    run = inlay("eval", base, file, "--json")
    assert json.loads(run.out)["rows"] == 4
    for words, count in (([], 12), (["--limit", "5"], 5)):
        run = inlay("eval", base, file, "--data", rows, "--json", *words)
        assert run.code == 0, run.err
        assert json.loads(run.out)["rows"] == count
    run = inlay("eval", base, file, "--data", folder, "--json", "--split", "train")
    assert json.loads(run.out)["rows"] == 4, "the same folder is no new one"


def test_predictions_do_not_repeat_mapped_columns(inlay, encoder, tmp_path):
    lines = [
        {"review": f"the film was {w}", "stars": w, "n": i}
        for i, w in enumerate(["good", "bad"] * 4)
    ]
    path = tmp_path / "mapped.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = '{"text": "review", "label": "stars"}'
    run = inlay(
        *("train", "--base", encoder, "--task", "classify", "--train", path, "--method", "BitFit"),
        *("--data.train.columns", columns, "--steps", "1", "--out", tmp_path / "run"),
    )
    assert run.code == 0, run.err
    file = tmp_path / "run" / "default.safetensors"
    run = inlay("eval", encoder, file, "--data", path, "--predictions", tmp_path / "p.jsonl")
    assert run.code == 0, run.err
    written = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [{k: row[k] for k in ("review", "stars", "n")} for row in written] == lines
    assert {*written[0]} == {"review", "stars", "n", "where", "prediction"}


def test_bad_rows_that_encoding_finds_are_left_out_too(inlay, recipe, base, rows, tmp_path):
    """Empty texts and targets, and rows that are too long, in train, dev and eval."""
    good = rows.read_text()
    long = {"source": "the " * 500, "target": "a"}
    bad = [{"source": "", "target": "a"}, {"source": "the", "target": ""}, long]
    rows.write_text("".join(json.dumps(row) + "\n" for row in bad) + good)
    message = inlay("train", recipe).error
    assert "rows.jsonl:2: its target is empty" in message
    options = ("--set", "task.empty_targets=true")
    message = inlay("train", recipe, *options).error
    assert "rows.jsonl:1: its text is empty" in message and "1 more row is bad" in message
    run = inlay("train", recipe, "--skip-bad-rows")
    assert run.code == 0, run.err
    lines = left_out(run.err)
    assert lines[0] == "3 rows were left out of train:"
    assert {line.split(": ")[0].strip() for line in lines[1:4]} == {
        f"{rows}:{n}" for n in (1, 2, 3)
    }
    file = tmp_path / "run" / "default.safetensors"
    run = inlay("eval", base, file, "--data", rows, "--limit", "15", "--skip-bad-rows", "--json")
    assert run.code == 0, run.err
    assert json.loads(run.out)["rows"] == 12
    assert left_out(run.err)[0] == f"3 rows were left out of {rows}:"
    message = inlay("eval", base, "--data", rows, "--task", "generate").error
    assert "rows.jsonl:2: its target is empty" in message


def test_the_next_command_is_quoted_for_the_shell(inlay, recipe, tmp_path):
    run = inlay("train", recipe, "--out", tmp_path / "my run's")
    assert run.code == 0, run.err
    (line,) = [line for line in run.out.splitlines() if line.startswith("next: ")]
    path = tmp_path / "my run's" / "default.safetensors"
    assert shlex.split(line)[4] == str(path)


def test_one_mapping_serves_every_part(inlay, recipe, rows, tmp_path):
    for name in ("rows", "more"):
        lines = [json.dumps({"q": "the", "a": "cat"}) + "\n"] * 4
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    mapping = ("--set", "data.columns.source=q", "--set", "data.columns.target=a")
    run = inlay("train", recipe, *mapping, "--test", tmp_path / "more.jsonl", "--steps", "1")
    assert run.code == 0, run.err
    assert "there is no column 'source'" in inlay("train", recipe).error


def test_eval_reads_the_task_from_the_recipe_beside_the_file(inlay, base, trained):
    run = inlay("eval", base, trained, "--json")
    assert run.code == 0, run.err
    scores = json.loads(run.out)
    assert scores["rows"] == 4
    assert "bleu" in scores


def test_eval_of_other_rows(inlay, base, trained, rows, tmp_path):
    file = tmp_path / "predictions.jsonl"
    run = inlay("eval", base, trained, "--data", rows, "--limit", "7", "--predictions", file)
    assert run.code == 0, run.err
    assert "7 rows" in run.out
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 7
    assert {"source", "target", "prediction", "where"} <= lines[0].keys()


def test_eval_reads_rows_as_it_needs_them(inlay, base, rows, tmp_path, monkeypatch):
    """With and without a file for the predictions, and a bad row leaves no part of it."""
    monkeypatch.setattr("inlay.training.loop.evaluation.CHUNK", 3)
    sizes = []
    encode_all = Task.encode_all
    monkeypatch.setattr(
        Task, "encode_all", lambda *args: sizes.append(len(args[1])) or encode_all(*args)
    )
    monkeypatch.setattr("inlay.training.recipes.recipe.load", None)  # which would read everything
    command = ("eval", base, "--data", rows, "--task", "generate", "--json")
    run = inlay(*command)
    assert run.code == 0, run.err
    count = json.loads(run.out)["rows"]
    assert sum(sizes) == count and max(sizes) == 3
    file = tmp_path / "predictions.jsonl"
    assert inlay(*command, "--predictions", file).out == run.out
    assert len(file.read_text().splitlines()) == count
    file.unlink()
    (tmp_path / "more.jsonl").write_text(
        rows.read_text() + json.dumps({"source": "", "target": "a"}) + "\n"
    )
    more = ("--data", tmp_path / "more.jsonl", "--predictions", file)
    assert "its text is empty" in inlay(*command, *more).error
    assert not list(tmp_path.glob("*predictions*"))


def test_eval_of_the_base_alone(inlay, base, rows):
    run = inlay("eval", base, "--data", rows, "--task", "generate")
    assert run.code == 0, run.err
    assert "the base alone" in run.out


def test_eval_needs_a_task_and_rows(inlay, base, rows):
    assert "--task" in inlay("eval", base, "--data", rows).error
    assert "--data" in inlay("eval", base, "--task", "generate").error


def test_eval_of_a_trained_head(inlay, encoder, reviews, tmp_path):
    run = inlay(
        *("train", "--base", encoder, "--method", "LoRA(rank=1)", "--task", "classify"),
        *("--train", reviews, "--steps", "2", "--out", tmp_path / "head"),
    )
    assert run.code == 0, run.err
    file = tmp_path / "head" / "default.safetensors"
    run = inlay("eval", encoder, file, "--data", reviews, "--json")
    assert run.code == 0, run.err
    scores = json.loads(run.out)
    confusion = scores["confusion"]
    assert 0 <= scores["accuracy"] <= 1
    assert confusion["no"]["no"] + confusion["yes"]["yes"] == 12 * scores["accuracy"]
    assert sum(confusion["yes"].values()) == 6
    run = inlay("eval", encoder, file, "--data", reviews)
    lines = [line.split() for line in run.out.splitlines()]
    assert ["label", "no", "yes"] in lines
    assert ["no", *map(str, confusion["no"].values())] in lines


def test_a_label_that_is_not_in_train(inlay, encoder, reviews, tmp_path):
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"text": "a", "label": "yes"}\n{"text": "a", "label": "yess"}\n')
    run = inlay(
        *("train", "--base", encoder, "--method", "LoRA(rank=1)", "--task", "classify"),
        *("--train", reviews, "--dev", odd, "--out", tmp_path / "out"),
    )
    assert "odd.jsonl:2: there is no label 'yess'; did you mean 'yes'?" in run.error


def test_folds_are_trained_and_scored(inlay, encoder, reviews, tmp_path):
    out = tmp_path / "folds"
    run = inlay(
        *("train", "--base", encoder, "--method", "LoRA(rank=1)", "--task", "classify"),
        *("--train", reviews, "--steps", "2", "--folds", "3", "--out", out),
    )
    assert run.code == 0, run.err
    folds = json.loads((out / "folds.json").read_text())
    scores = [*folds["folds"], folds["mean"], folds["sd"]]
    lines = [line.split() for line in run.out.splitlines()]
    assert ["fold", "1", "fold", "2", "fold", "3", "mean", "sd"] in lines
    assert ["accuracy", *(f"{score['accuracy']:.4f}" for score in scores)] in lines
    assert "fold 3 of 3" in run.err
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
    ("task", "rows", "metric", "kind"),
    [
        ("choose --task.by mean", CHOICES, "accuracy", int),
        ("choose", CHOICES, "accuracy", int),
        ("regress", VALUES, "pearson", float),
        ("classify --task.objective.kind binary_cross_entropy", TOPICS, "micro_f1", list),
    ],
)
def test_other_tasks_are_trained_and_scored(inlay, base, tmp_path, task, rows, metric, kind):
    data, out = tmp_path / "rows.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = inlay(
        *("train", "--base", base, "--method", "LoRA(rank=1)", "--task", *task.split()),
        *("--task.metric", metric, "--train", data, "--dev", data, "--steps", "2", "--out", out),
    )
    assert run.code == 0, run.err
    predictions, file = tmp_path / "predictions.jsonl", out / "default.safetensors"
    run = inlay("eval", base, file, "--data", data, "--json", "--predictions", predictions)
    assert run.code == 0, run.err
    scores = json.loads(run.out)
    assert scores[metric] == json.loads((out / "result.json").read_text())["dev"][metric]
    assert "confusion" not in scores
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert {type(line["prediction"]) for line in lines} == {kind}


NAMES = [
    {"tokens": ["the", word, "was", end], "tags": ["O", "B-a", "I-a", "O"]}
    for word, end in [("cat", "good"), ("dog", "bad"), ("mat", "fine"), ("film", "dull")]
]
ROLES = [{**row, "tags": ["O", "A1", "V", "O"], "predicate": 2} for row in NAMES]
QUESTIONS = [
    {"question": "cat", "context": f"{8 * 'the film was '}{word}", "answers": [{"text": word, "start": 104}]}
    for word in ("good", "bad")
] + [{"question": "dog", "context": "dull", "answers": []}]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "rows", "kind"),
    [
        ("tag", NAMES, list),
        ("tag --task.scheme plain", ROLES, list),
        ("extract --task.max_length 20 --task.stride 4", QUESTIONS, str),
    ],
)
@pytest.mark.parametrize("model", ["base", "encoder"])
def test_tags_and_answers_are_trained_and_scored(inlay, request, tmp_path, model, task, rows, kind):
    base, out = request.getfixturevalue(model), tmp_path / "run"
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = inlay(
        *("train", "--base", base, "--method", "LoRA(rank=1)", "--task", *task.split()),
        *("--train", data, "--dev", data, "--steps", "2", "--eval-every", "1", "--out", out),
    )
    assert run.code == 0, run.err
    assert "untouched" in run.out
    predictions = tmp_path / "predictions.jsonl"
    file = out / "default.safetensors"
    run = inlay("eval", base, file, "--data", data, "--json", "--predictions", predictions)
    assert run.code == 0, run.err
    scores = json.loads(run.out)
    assert scores["rows"] == len(rows)
    assert scores["f1"] == json.loads((out / "result.json").read_text())["dev"]["f1"]
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert len(lines) == len(rows)
    assert {type(line["prediction"]) for line in lines} == {kind}


def test_help_is_read_from_docstrings():
    doc = """What it is.

    one: the first; None
        for none. two, three: the others.
    four: nothing that looks like a: field.
    """
    assert parse_docstring(doc) == {
        "one": "The first; None for none.",
        "two": "The others.",
        "three": "The others.",
        "four": "Nothing that looks like a: field.",
    }


def test_the_value_of_a_flag_is_read_from_its_type():
    values = {name: value_of(field.annotation) for name, field in Training.model_fields.items()}
    assert values["lr"] == "NUMBER"
    assert values["steps"] == "INTEGER"
    assert values["schedule"] == "linear|cosine|constant"
    assert values["dropout"] == "true|false"
    assert values["betas"] == "JSON"
