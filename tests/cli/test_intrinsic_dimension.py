"""`inlay intrinsic-dimension`: the whole base and subspaces are trained, and compared."""

import json

import pytest


@pytest.fixture
def recipe(base, inlay, tmp_path):
    rows = [
        {"text": f"a {'bright' if n % 2 else 'dull'} film", "label": "yes" if n % 2 else "no"}
        for n in range(16)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(
        f"base: {base}\ntask: {{kind: classify}}\nmethod: LoRA\nout: out\n"
        "data:\n  train: {source: rows.jsonl}\n  dev: {source: rows.jsonl}\n"
        "training: {steps: 2, batch_size: 4}\n"
    )
    return "recipe.yaml"


def test_the_smallest_subspace_that_reaches_the_share_is_named(inlay, recipe, tmp_path):
    command = ("intrinsic-dimension", recipe, "--dimensions", "300,100", "--share", "0.01")
    run = inlay(*command)
    assert run.code == 0, run.err
    assert "d1 = 100: the fewest dimensions that reach" in run.out
    lines = [line.split() for line in run.out.splitlines()]
    assert [line[0] for line in lines if line and line[0].isdigit()] == ["100", "300"]
    stored = json.loads((tmp_path / "out" / "dimensions.json").read_text())
    assert stored["result"]["dimension"] == 100
    assert len(stored["runs"]) == 3
    of_head = set()
    for size in (100, 300):
        result = json.loads((tmp_path / "out" / f"dimensions-{size}" / "result.json").read_text())
        of_head.add(result["parameters"] - size)  # z with its scales, and the trained head
        assert f"dimensions={size}" in result["recipe"]["method"]
    assert len(of_head) == 1
    assert json.loads((tmp_path / "out" / "full" / "result.json").read_text())["base"]
    again = inlay(*command)
    assert "running" not in again.err and again.out == run.out
    more = inlay(*command[:3], "100,300,200", "--share", "0.01", "--json")
    assert more.err.count("running") == 1 and "dimensions=200" in more.err
    assert list(json.loads(more.out)["scores"]) == ["100", "200", "300"]


def test_a_known_score_of_the_whole_base_is_taken(inlay, recipe, tmp_path):
    run = inlay("intrinsic-dimension", recipe, "--dimensions", "100", "--full-score", "5")
    assert "d90 is above 100: none reaches 4.5000" in run.out, run.err
    assert not (tmp_path / "out" / "full").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dimensions", "many"), "whole numbers"),
        (("--set", "data.dev=null"), "rows that are not trained on"),
        (("--share", "2"), "a share between 0 and 1"),
        (("--set", "ensemble=3"), "without ensemble"),
        (("--dimensions", "3"), "scales=False"),
    ],
)
def test_refusals(inlay, recipe, options, message):
    run = inlay("intrinsic-dimension", recipe, *options)
    assert run.code == 2 and message in run.error, run.error


def test_a_damaged_file_is_named(inlay, recipe, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dimensions.json").write_text("{")
    assert "delete it" in inlay("intrinsic-dimension", recipe).error
