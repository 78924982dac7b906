"""Claims: when one holds, what is stored, how the command lists and measures them."""

import json
import re
from dataclasses import replace
from statistics import fmean

import pytest
import torch

from bench import claims
from bench.claims import neighbours, results, setting
from bench.claims.base import Claim, Run, held
from inlay.errors import DataError, SpecError
from inlay_cli import docs
from inlay_cli import reproduce as command
from inlay_cli.app import main

FAKE = Claim(
    name="fake",
    paper="Nobody, ACL 2020",
    section="1",
    sentence="Two is more than one.",
    figures="2 | 1",
    sized=1,
    settings={"steps": 3, "rates": (0.1, 0.2)},
    measure=lambda run: {"one": 1.0, "two": 2.0 + run.seed},
    margin=lambda n: n["two"] - n["one"],
    told={"one": "one", "two": "two"},
    plot=lambda axes, seeds: axes.plot([n["two"] for n in seeds]),
)


@pytest.fixture
def inlay(capsys, monkeypatch):
    """`inlay("reproduce")` gives the exit code, what went to stdout and what to stderr."""
    monkeypatch.setenv("COLUMNS", "180")
    monkeypatch.delenv("INLAY_DATA", raising=False)

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """The only claim there is, and an empty folder for results; plots are not drawn."""
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(claims, "names", lambda: ["fake"])
    monkeypatch.setattr(results, "draw", lambda claim, seeds: tmp_path / "fake.svg")

    def use(claim=FAKE):
        monkeypatch.setattr(claims, "claim", lambda name: claim)

    use()
    return use


def stored():
    return json.loads((results.FOLDER / "fake.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("margins", "said"),
    [
        ((1, 1, 1), True),
        ((3, 1, -1), True),
        ((1, 1, -3), False),  # right in two of three, wrong in the mean
        ((5, -1, -1), False),  # right in the mean, wrong in two of three
        ((0, 0, 0), False),
        ((1, 1), None),
        ((), None),
    ],
)
def test_a_claim_holds_in_the_mean_and_in_two_thirds_of_the_seeds(margins, said):
    assert held(margins) is said


def test_what_was_measured_is_stored_with_what_made_it(inlay, fake):
    code, out, _ = inlay("reproduce", "fake")
    assert code == 0
    assert "it held" in out
    one = stored()
    assert one["seeds"] == {str(n): {"one": 1.0, "two": 2.0 + n} for n in range(3)}
    assert one["mean"] == {"one": 1.0, "two": 3.0}
    assert one["sd"] == {"one": 0.0, "two": 1.0}
    assert one["margins"] == [1.0, 2.0, 3.0]
    assert one["held"] is True
    assert one["settings"] == {"steps": 3, "rates": [0.1, 0.2]}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", one["date"])
    assert one["machine"]["torch"] == torch.__version__


def test_a_claim_that_does_not_hold_is_stored_as_such(inlay, fake):
    fake(replace(FAKE, margin=lambda n: n["one"] - n["two"], tried=("lr 1",)))
    _, out, _ = inlay("reproduce", "fake")
    assert "did not hold" in out
    assert stored()["held"] is False
    assert stored()["tried"] == ["lr 1"]
    _, out, _ = inlay("reproduce")
    assert re.search(r"fake .* 2 \| 1 .* 3 ± 1 +3 +no", out)


def test_a_single_seed_stands_beside_those_of_the_same_settings(inlay, fake):
    inlay("reproduce", "fake", "--seeds", "2")
    assert stored()["held"] is None
    inlay("reproduce", "fake", "--seed", "5")
    assert list(stored()["seeds"]) == ["0", "1", "5"]
    assert stored()["held"] is True
    fake(replace(FAKE, settings={"steps": 4}))
    inlay("reproduce", "fake", "--seed", "0")
    assert list(stored()["seeds"]) == ["0"]


def test_seeds_before_a_failure_are_kept(inlay, fake):
    def measure(run):
        if run.seed == 2:
            raise DataError("no more")
        return {"one": 1.0, "two": 2.0}

    fake(replace(FAKE, measure=measure))
    code, _, err = inlay("reproduce", "fake")
    assert code == 2
    assert "no more" in err
    assert list(stored()["seeds"]) == ["0", "1"]


def test_the_list_says_what_was_not_measured(inlay, fake):
    code, out, _ = inlay("reproduce")
    assert code == 0
    assert "not measured" in out
    assert "2 | 1" in out


def test_the_list_of_this_repository(inlay):
    code, out, _ = inlay("reproduce")
    assert code == 0
    for name in claims.names():
        assert name in out


def test_no_such_claim(inlay):
    code, _, err = inlay("reproduce", "lenght")
    assert code == 2
    assert "did you mean 'length'?" in err
    with pytest.raises(SpecError):
        claims.claim("base")


def test_without_the_repository(inlay, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "ROOT", tmp_path)
    code, _, err = inlay("reproduce")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "in the repository of inlay" in err


def test_data_that_are_not_there_are_said_before_anything_is_measured(
    inlay, fake, monkeypatch, tmp_path
):
    fake(replace(FAKE, needs=("e2e",), measure=lambda run: pytest.fail("measured")))
    monkeypatch.setattr(command, "_data", lambda given, real=command._data: given and real(given))
    for given, said in (
        ((), "no data folder was found"),
        (("--data", tmp_path), f"{tmp_path} has no e2e"),
        (("--data", tmp_path / "no"), "is no folder"),
    ):
        code, _, err = inlay("reproduce", "fake", *given)
        assert code == 2
        assert said in err.splitlines()[-1]
        assert "--data" in err
    (tmp_path / "e2e").mkdir()
    fake(replace(FAKE, needs=("e2e",)))
    monkeypatch.setenv("INLAY_DATA", str(tmp_path))
    assert inlay("reproduce", "fake")[0] == 0


def test_data_are_looked_for_beside_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "ROOT", tmp_path / "checkout")
    assert command._data(None) is None
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert command._data(None) == tmp_path / "shared" / "data"


def test_results_that_are_no_json_are_named(inlay, fake):
    results.FOLDER.mkdir()
    (results.FOLDER / "fake.json").write_text("{")
    code, _, err = inlay("reproduce")
    assert code == 2
    assert "fake.json" in err


def test_the_table_of_the_documents(inlay, fake):
    inlay("reproduce", "fake")
    text = docs.claimed([stored()])
    assert (
        "| [`fake`](#fake) | Nobody, ACL 2020, section 1 | 2 \\| 1 | one 1 ± 0, two 3 ± 1 | yes |"
        in text
    )
    assert "Settings: steps 3, rates [0.1, 0.2]." in text


@pytest.mark.parametrize("name", claims.names())
def test_every_claim_is_whole(name):
    one = claims.claim(name)
    assert one.name == name
    assert one.paper
    assert one.section
    assert one.sentence.endswith(".")
    assert 0 < one.sized <= 20
    assert one.told
    assert one.settings["steps"] > 0
    assert "unverified" not in one.figures


@pytest.mark.parametrize("name", claims.names())
def test_stored_results_are_those_of_the_claim(name):
    found = results.read(name)
    if found is None:
        return
    one = claims.claim(name)
    seeds = list(found["seeds"].values())
    margins = [one.margin(numbers) for numbers in seeds]
    assert found["margins"] == pytest.approx(margins, abs=1e-4)
    assert found["held"] is held(margins)
    assert set(found["told"]) <= set(found["mean"])
    for key, value in found["mean"].items():
        assert value == pytest.approx(fmean(n[key] for n in seeds), abs=1e-4)
    assert results.seeds_of(one)  # measured with the settings of today
    assert (results.FOLDER / f"{name}.svg").exists()


def test_a_plot_is_a_file_that_does_not_change(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    numbers = {0: {"one": 1.0, "two": 2.0}, 1: {"one": 1.0, "two": 3.0}}
    made = [results.draw(FAKE, numbers).read_text() for _ in range(2)]
    assert made[0] == made[1]
    assert made[0].rstrip().endswith("</svg>")


@pytest.mark.parametrize(
    ("name", "numbers", "speaks_for_it"),
    [
        ("length", {"accuracy_1": 0.5, "accuracy_20": 0.8, "accuracy_50": 0.82}, True),
        ("length", {"accuracy_1": 0.5, "accuracy_20": 0.6, "accuracy_50": 0.8}, False),
        ("length", {"accuracy_1": 0.8, "accuracy_20": 0.6, "accuracy_50": 0.1}, False),
        (
            "prompt_init",
            {"accuracy_labels": 0.9, "accuracy_common": 0.8, "accuracy_uniform": 0.7},
            True,
        ),
        (
            "prompt_init",
            {"accuracy_labels": 0.8, "accuracy_common": 0.9, "accuracy_uniform": 0.7},
            False,
        ),
        (
            "prompt_init",
            {"accuracy_labels": 0.9, "accuracy_common": 0.7, "accuracy_uniform": 0.8},
            False,
        ),
        ("ensemble", {"accuracy_mean": 0.8, "accuracy_vote": 0.82}, True),
        ("ensemble", {"accuracy_mean": 0.8, "accuracy_vote": 0.79}, False),
        ("mlp", {"spread_with": 0.1, "spread_without": 0.4}, True),
        ("mlp", {"spread_with": 0.4, "spread_without": 0.1}, False),
        ("embedding_only", {"loss_prompt": 3.0, "loss_prefix": 2.0}, True),
        ("words_low_data", {"loss_random": 3.0, "loss_relevant": 2.0}, True),
        ("ptuning_encoder", {"loss_none": 0.5, "loss_lstm": 0.4}, True),
        ("transfer", {"prompt_others": 0.8, "full_others": 0.7}, True),
        ("lama", {"trained": 0.4, "hand": 0.3}, True),
        ("tagging", {"f1_prompt": 0.1, "f1_v2": 0.3, "f1_full": 0.4}, True),
        ("tagging", {"f1_prompt": 0.1, "f1_v2": 0.2, "f1_full": 0.4}, False),
        ("tagging", {"f1_prompt": 0.1, "f1_v2": 0.3, "f1_full": 0.0}, False),
    ],
)
def test_a_margin_is_positive_where_the_sentence_is_true(name, numbers, speaks_for_it):
    assert (claims.claim(name).margin(numbers) > 0) is speaks_for_it


def test_neighbours_of_vectors():
    table = torch.eye(6)
    table[1] = torch.tensor([0.8, 0.6, 0, 0, 0, 0])
    near = neighbours.nearest(3 * table[:1], table, 2)
    assert near == [[0, 1]]
    assert neighbours.share([0, 5], near) == 0.5
    assert neighbours.together(near, table) == pytest.approx(0.8)


def test_a_sample_is_drawn_with_its_seed():
    rows = list(range(50))
    assert setting.sample(rows, 5, 1) == setting.sample(rows, 5, 1)
    assert setting.sample(rows, 5, 1) != setting.sample(rows, 5, 2)
    assert sorted(setting.sample(rows, 99, 1)) == rows


def test_a_run_names_the_data_it_lacks(tmp_path):
    run = Run(0, {}, tmp_path, None)
    with pytest.raises(DataError, match="has no e2e; name the folder with --data"):
        run.folder("e2e")
