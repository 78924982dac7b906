"""predict: answers for new rows, from an inlay's file alone."""

import io
import json
import sys

import pandas
import pytest
import transformers as hf


@pytest.fixture
def labeller(inlay, encoder, reviews, tmp_path):
    """The file of a trained classifier, with nothing beside it."""
    run = inlay(
        *("train", "--base", encoder, "--task", "classify", "--train", reviews, "--dev", reviews),
        *(
            "--method",
            "LoRA(rank=2)",
            "--steps",
            "2",
            "--batch-size",
            "4",
            "--out",
            tmp_path / "run",
        ),
    )
    assert run.code == 0, run.err
    assert "calibrated on dev: temperature" in run.err
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / "run" / "default.safetensors").rename(alone / "default.safetensors")
    return alone / "default.safetensors"


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "new.csv"
    pandas.DataFrame({"id": [1, 2], "text": ["the film was good", "a dull film"]}).to_csv(
        path, index=False
    )
    return path


def test_predict_writes_a_file(inlay, labeller, table):
    run = inlay("predict", labeller, table, "--out", "answers.csv")
    assert run.code == 0, run.err
    assert run.out == ""
    assert run.err.splitlines()[-1] == "wrote 2 rows to answers.csv"
    answers = pandas.read_csv("answers.csv")
    assert list(answers) == ["id", "text", "prediction", "probability", "probabilities"]
    assert answers["id"].tolist() == [1, 2]
    assert "exists already" in inlay("predict", labeller, table, "--out", "answers.csv").error
    again = inlay("predict", labeller, table, "--out", "answers.csv", "--overwrite")
    assert again.code == 0, again.err
    named = inlay("predict", labeller, "answers.csv", "--out", "more.jsonl")
    assert "the rows have columns of the predictions' names already" in named.err
    assert "inlay_prediction" in named.err
    assert "no ending" in inlay("predict", labeller, table, "--out", "answers.doc").error


def test_predict_prints_json_lines_into_a_pipe(inlay, labeller, table):
    run = inlay("predict", labeller, table)
    assert run.code == 0, run.err
    first, second = map(json.loads, run.out.splitlines())
    assert first["text"] == "the film was good" and first["prediction"] in ("no", "yes")
    assert set(second["probabilities"]) == {"no", "yes"}


def test_predict_shows_a_table_in_a_terminal(inlay, labeller, table, monkeypatch, capsys):
    monkeypatch.setattr("inlay_cli.predict.is_terminal", lambda: True)
    run = inlay("predict", labeller, table)
    assert run.code == 0, run.err
    assert "prediction" in run.out.splitlines()[1]
    assert "{" in run.out and not run.out.startswith("{")


def test_predict_reads_a_pipe(inlay, labeller, table, monkeypatch):
    direct = inlay("predict", labeller, table).out
    monkeypatch.setattr(sys, "stdin", io.StringIO("the film was good\n\na dull film\n"))
    run = inlay("predict", labeller, "-")
    assert run.code == 0, run.err
    lines = [json.loads(line) for line in run.out.splitlines()]
    assert [line["prediction"] for line in lines] == [
        json.loads(x)["prediction"] for x in direct.splitlines()
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("the film was good\n"))
    assert inlay("predict", labeller, "-", "--out", "piped.csv").code == 0
    assert pandas.read_csv("piped.csv")["text"].tolist() == ["the film was good"]


def test_predict_reads_objects_from_a_pipe(inlay, encoder, tmp_path, monkeypatch):
    rows = [
        {"context": "the cat sat", "question": "a cat", "answers": [{"text": "cat", "start": 4}]}
    ] * 4
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = inlay(
        *(
            "train",
            "--base",
            encoder,
            "--task",
            "extract",
            "--train",
            "qa.jsonl",
            "--method",
            "LoRA(rank=1)",
        ),
        *("--steps", "1", "--batch-size", "2", "--out", "qa"),
    )
    assert run.code == 0, run.err
    monkeypatch.setattr(
        sys, "stdin", io.StringIO('{"context": "the dog sat", "question": "a dog"}\n')
    )
    run = inlay("predict", "qa/default.safetensors", "-")
    assert run.code == 0, run.err
    (line,) = map(json.loads, run.out.splitlines())
    assert list(line) == ["context", "question", "prediction", "start", "end", "score"]


def test_a_bad_row_is_named_or_left_out(inlay, labeller, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "old"}\n{"text": ""}\n{"txt": "a"}\n')
    message = inlay("predict", labeller, "rows.jsonl", "--out", "a.csv").error
    assert "rows.jsonl:" in message and "--skip-bad-rows goes on" in message
    run = inlay("predict", labeller, "rows.jsonl", "--out", "b.csv", "--skip-bad-rows")
    assert run.code == 0, run.err
    assert "2 rows were left out of the predictions:" in run.err
    assert pandas.read_csv("b.csv")["error"].notna().tolist() == [False, True, True]


def test_predict_takes_columns_of_other_names(inlay, labeller, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"review": "old"}\n')
    assert "there is no column 'text'" in inlay("predict", labeller, "rows.jsonl").error
    assert inlay("predict", labeller, "rows.jsonl", "--column", "text=review").code == 0
    assert (
        "--column takes FIELD=VALUE"
        in inlay("predict", labeller, "rows.jsonl", "--column", "x").error
    )
    assert "--overwrite is for" in inlay("predict", labeller, "rows.jsonl", "--overwrite").error


def test_ctrl_c_says_what_is_there(inlay, labeller, table, monkeypatch):
    import signal

    from inlay.predicting import Predictor

    def interrupted(*_, **__):
        signal.raise_signal(signal.SIGINT)
        return []

    monkeypatch.setattr(
        "inlay.predicting.file.chunked", lambda inputs, size: _two(inputs, interrupted)
    )
    assert Predictor is not None
    run = inlay("predict", labeller, table, "--out", "answers.csv")
    assert run.code == 130
    assert "stopped after 1 row, which answers.csv holds" in run.err
    assert len(pandas.read_csv("answers.csv")) == 1


def _two(inputs, interrupt):
    first, second = inputs
    yield [first]
    interrupt()
    yield [second]


# ------------------------------------------------------------------------------------ merge FILE


def test_merge_needs_the_file_alone(inlay, trained, tmp_path):
    run = inlay("merge", trained, "--out", tmp_path / "merged")
    assert run.code == 0, run.err
    hf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert "give a FILE and the folder" in inlay("merge", trained).error


def test_a_merged_classifier_loads_in_transformers(inlay, encoder, reviews, tmp_path):
    head = "Head(labels=('no', 'yes'), pool='first')"
    run = inlay(
        *("train", "--base", encoder, "--task", "classify", "--train", reviews, "--steps", "2"),
        *("--method", f"LoRA(rank=2) + {head}", "--batch-size", "4", "--out", tmp_path / "run"),
    )
    assert run.code == 0, run.err
    file = tmp_path / "run" / "default.safetensors"
    merged = inlay("merge", file, "--out", tmp_path / "merged")
    assert merged.code == 0, merged.err
    assert "a BertForSequenceClassification" in merged.out
    pipe = hf.pipeline("text-classification", str(tmp_path / "merged"))
    answers = inlay("predict", file, reviews, "--out", "answers.jsonl")
    assert answers.code == 0, answers.err
    for line in map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines()):
        (found,) = pipe(line["text"])[:1]
        assert found["label"] == line["prediction"]
        assert found["score"] == pytest.approx(line["probability"], abs=1e-4)


def test_a_classifier_of_another_shape_says_why(inlay, labeller, tmp_path):
    run = inlay("merge", labeller, "--out", tmp_path / "merged")
    assert run.code == 0, run.err
    assert "with its head in head.safetensors" in run.out
    assert (
        "not one of transformers' classifiers: BertForSequenceClassification reads the first"
        in run.err
    )
    answers = inlay("predict", tmp_path / "merged" / "head.safetensors", "-", "--help")
    assert answers.code == 0


def test_the_merged_head_is_used_by_its_file_alone(inlay, labeller, table, tmp_path):
    assert inlay("merge", labeller, "--out", tmp_path / "merged").code == 0
    before = inlay("predict", labeller, table).out
    after = inlay("predict", tmp_path / "merged" / "head.safetensors", table)
    assert after.code == 0, after.err
    pairs = zip(
        map(json.loads, before.splitlines()), map(json.loads, after.out.splitlines()), strict=True
    )
    for a, b in pairs:
        assert a["prediction"] == b["prediction"]
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-4)


# ------------------------------------------------------------------------------------- training


def test_train_says_what_is_trained_and_what_is_saved(inlay, recipe):
    run = inlay("train", recipe, "--method", "Prefix(length=2, mlp=8)")
    assert run.code == 0, run.err
    assert "parameters are trained (" in run.err and " are saved (" in run.err
    assert " saved" in run.out


def test_train_goes_on_from_a_file(inlay, recipe, trained, tmp_path):
    run = inlay("train", recipe, "--start", trained, "--out", tmp_path / "on")
    assert run.code == 0, run.err
    assert "start: bleu" in run.err
    message = inlay(
        "train", recipe, "--start", trained, "--method", "BitFit", "--out", tmp_path / "x"
    ).error
    assert "which the recipe's method lacks" in message


# ------------------------------------------------------------------------- eval and generate FILE


def test_eval_needs_the_file_alone(inlay, labeller, encoder, reviews):
    run = inlay("eval", labeller, "--data", reviews, "--json")
    assert run.code == 0, run.err
    with_base = inlay("eval", encoder, labeller, "--data", reviews, "--json")
    assert json.loads(run.out) == json.loads(with_base.out)
    assert "there are no rows to evaluate on; give --data" in inlay("eval", labeller).error


def test_eval_shows_the_worst_mistakes(inlay, labeller, tmp_path):
    words = ["good", "bad", "fine", "dull", "old", "new", "red", "blue"]
    rows = [{"text": f"the film was {w}", "label": label} for w in words for label in ("yes", "no")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = inlay("eval", labeller, "--data", "rows.jsonl", "--errors", "3", "--json")
    assert run.code == 0, run.err
    result = json.loads(run.out)
    assert result["accuracy"] == 0.5, "every text is there with both labels"
    predicted = inlay("predict", labeller, "rows.jsonl")
    lines = [json.loads(line) for line in predicted.out.splitlines()]
    wrong = [line for line in lines if line["label"] != line["prediction"]]
    wrong.sort(key=lambda line: line["probabilities"][line["label"]])
    errors = result["errors"]
    assert [error["text"] for error in errors] == [line["text"] for line in wrong[:3]]
    for error, line in zip(errors, wrong, strict=False):
        assert (error["gold"], error["prediction"]) == (line["label"], line["prediction"])
        assert error["probability"] == pytest.approx(line["probability"], rel=1e-4)
        assert error["where"].startswith("rows.jsonl:")
    table = inlay("eval", labeller, "--data", "rows.jsonl", "--errors", "3").out
    assert "The worst of 8 mistakes" in table
    assert errors[0]["text"] in table and errors[0]["where"] in table
    assert "accuracy" in table


def test_the_scores_with_errors_are_those_without(inlay, labeller, reviews):
    plain = json.loads(inlay("eval", labeller, "--data", reviews, "--json").out)
    more = json.loads(inlay("eval", labeller, "--data", reviews, "--json", "--errors", "1").out)
    assert {name: more[name] for name in plain} == plain
    assert len(more["errors"]) == min(1, round(12 * (1 - plain["accuracy"])))


def test_eval_of_several_files_side_by_side(inlay, labeller, encoder, reviews, tmp_path):
    run = inlay(
        *("train", "--base", encoder, "--task", "classify", "--train", reviews, "--steps", "1"),
        *("--method", "BitFit", "--out", tmp_path / "other"),
    )
    assert run.code == 0, run.err
    other = tmp_path / "other" / "default.safetensors"
    run = inlay("eval", labeller, other, "--data", reviews)
    assert run.code == 0, run.err
    header = run.out.splitlines()[1].split()
    assert header == ["12", "rows", "alone/default", "other/default"]
    both = json.loads(inlay("eval", labeller, other, "--data", reviews, "--json").out)
    for name, file in (("alone/default", labeller), ("other/default", other)):
        assert both[name] == json.loads(inlay("eval", file, "--data", reviews, "--json").out)
    message = inlay("eval", labeller, other, "--data", reviews, "--predictions", "p.jsonl").error
    assert "--predictions is for one FILE" in message


def test_generate_needs_the_file_alone(inlay, base, trained, tmp_path):
    with_base = inlay("generate", base, trained, "the cat", "--max-new-tokens", "5")
    assert with_base.code == 0, with_base.err
    (tmp_path / "alone").mkdir()
    alone = tmp_path / "alone" / "x.safetensors"
    trained.rename(alone)
    assert inlay("generate", alone, "the cat", "--max-new-tokens", "5").out == with_base.out
    assert "is a FILE; give a PROMPT" in inlay("generate", alone).error
    assert "give a BASE or a FILE" in inlay("generate", "hello").error


def test_the_commands_teach_by_examples(inlay):
    for command in ("predict", "eval", "generate", "merge"):
        page = inlay(command, "--help").out
        assert page.count("# ") >= 2 and "Examples" in page
