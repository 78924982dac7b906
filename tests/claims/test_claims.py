"""Claims: when one holds, what is stored, how the command lists and measures them."""

import json
import re
from dataclasses import replace
from statistics import fmean

import pytest
import torch

from bench import data
from bench.claims import __main__ as command
from bench.claims import experiment, results
from bench.claims.claim import Claim, Run, held
from bench.claims.papers import CLAIMS, find, neighbours
from bench.docs import claims as claims_page
from inlay.errors import DataError, SpecError

FAKE = Claim(
    name="fake",
    paper="Nobody, ACL 2020",
    section="1",
    sentence="Two is more than one.",
    figures="2 | 1",
    minutes=1,
    settings={"steps": 3, "rates": (0.1, 0.2)},
    measure=lambda run: {"one": 1.0, "two": 2.0 + run.seed},
    margin=lambda n: n["two"] - n["one"],
    reported={"one": "one", "two": "two"},
    plot=lambda axes, seeds: axes.plot([n["two"] for n in seeds]),
)


@pytest.fixture
def run_command(capsys, monkeypatch):
    """`run_command("fake")` gives the exit code, and what was written to stdout and to stderr."""
    monkeypatch.setenv("COLUMNS", "180")
    monkeypatch.delenv("INLAY_DATA", raising=False)

    def run(*words):
        capsys.readouterr()
        code = command.main([str(word) for word in words])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """The only claim, and an empty folder for results; plots are not drawn."""
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(results, "draw", lambda claim, seeds: tmp_path / "fake.svg")
    for name in list(CLAIMS):
        monkeypatch.delitem(CLAIMS, name)

    def use(claim=FAKE):
        monkeypatch.setitem(CLAIMS, "fake", claim)

    use()
    return use


def stored():
    return json.loads((results.FOLDER / "fake.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("margins", "verdict"),
    [
        ((1, 1, 1), True),
        ((3, 1, -1), True),
        ((1, 1, -3), False),  # positive in two of three, negative in the mean
        ((5, -1, -1), False),  # positive in the mean, negative in two of three
        ((0, 0, 0), False),
        ((1, 1), None),
        ((), None),
    ],
)
def test_a_claim_holds_in_the_mean_and_in_two_thirds_of_the_seeds(margins, verdict):
    assert held(margins) is verdict


def test_results_are_stored_with_the_settings_and_the_machine(run_command, fake):
    code, out, _ = run_command("fake")
    assert code == 0
    assert "it held" in out
    content = stored()
    assert content["seeds"] == {str(n): {"one": 1.0, "two": 2.0 + n} for n in range(3)}
    assert content["mean"] == {"one": 1.0, "two": 3.0}
    assert content["sd"] == {"one": 0.0, "two": 1.0}
    assert content["margins"] == [1.0, 2.0, 3.0]
    assert content["held"] is True
    assert content["settings"] == {"steps": 3, "rates": [0.1, 0.2]}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", content["date"])
    assert content["machine"]["torch"] == torch.__version__


def test_a_claim_that_does_not_hold_is_stored_as_such(run_command, fake):
    fake(replace(FAKE, margin=lambda n: n["one"] - n["two"], tried=("lr 1",)))
    _, out, _ = run_command("fake")
    assert "did not hold" in out
    assert stored()["held"] is False
    assert stored()["tried"] == ["lr 1"]
    _, out, _ = run_command()
    assert re.search(r"fake .* 2 \| 1 .* 3 ± 1 +3 +no", out)


def test_a_single_seed_is_added_to_those_with_the_same_settings(run_command, fake):
    run_command("fake", "--seeds", "2")
    assert stored()["held"] is None
    run_command("fake", "--seed", "5")
    assert list(stored()["seeds"]) == ["0", "1", "5"]
    assert stored()["held"] is True
    fake(replace(FAKE, settings={"steps": 4}))
    run_command("fake", "--seed", "0")
    assert list(stored()["seeds"]) == ["0"]


def test_seeds_before_a_failure_are_stored(run_command, fake):
    def measure(run):
        if run.seed == 2:
            raise DataError("no more")
        return {"one": 1.0, "two": 2.0}

    fake(replace(FAKE, measure=measure))
    code, _, err = run_command("fake")
    assert code == 2
    assert "no more" in err
    assert list(stored()["seeds"]) == ["0", "1"]


def test_the_list_shows_what_was_not_measured(run_command, fake):
    code, out, _ = run_command()
    assert code == 0
    assert "not measured" in out
    assert "2 | 1" in out


def test_the_list_of_this_repository(run_command):
    code, out, _ = run_command()
    assert code == 0
    for name in CLAIMS:
        assert name in out


def test_an_unknown_claim_is_refused_with_the_nearest_name(run_command):
    code, _, err = run_command("lenght")
    assert code == 2
    assert "did you mean 'length'?" in err
    with pytest.raises(SpecError):
        find("base")


@pytest.mark.parametrize("words", [("fake", "--seeds", "0"), ("fake", "--seed", "-1")])
def test_impossible_seeds_are_refused(run_command, words):
    with pytest.raises(SystemExit):
        run_command(*words)


def test_a_missing_data_set_is_refused_before_anything_is_measured(
    run_command, fake, monkeypatch, tmp_path
):
    fake(replace(FAKE, data=("e2e",), measure=lambda run: pytest.fail("measured")))
    monkeypatch.setattr(data, "ROOT", tmp_path / "checkout" / "deep")
    for options, message in (
        ((), "there is no data folder"),
        (("--data", tmp_path), f"{tmp_path} has no e2e"),
        (("--data", tmp_path / "no"), "is not a folder"),
    ):
        code, _, err = run_command("fake", *options)
        assert code == 2
        assert message in err.splitlines()[-1]
        assert "--data" in err
    (tmp_path / "e2e").mkdir()
    fake(replace(FAKE, data=("e2e",)))
    monkeypatch.setenv("INLAY_DATA", str(tmp_path))
    assert run_command("fake")[0] == 0


def test_data_sets_are_found_next_to_the_checkout(monkeypatch, tmp_path):
    monkeypatch.delenv("INLAY_DATA", raising=False)
    monkeypatch.setattr(data, "ROOT", tmp_path / "checkout")
    assert data.data_folder() is None
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert data.data_folder() == tmp_path / "shared" / "data"


def test_a_damaged_file_of_results_is_named(run_command, fake):
    results.FOLDER.mkdir()
    (results.FOLDER / "fake.json").write_text("{")
    code, _, err = run_command()
    assert code == 2
    assert "fake.json" in err


def test_the_table_of_the_documents(run_command, fake):
    run_command("fake")
    text = claims_page.of_results([stored()])
    assert (
        "| [`fake`](#fake) | Nobody, ACL 2020, section 1 | 2 \\| 1 | one 1 ± 0, two 3 ± 1 | yes |"
        in text
    )
    assert "Settings: steps 3, rates [0.1, 0.2]." in text


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_every_claim_is_complete(name):
    claim = find(name)
    assert claim.name == name
    assert claim.paper
    assert claim.sentence.endswith(".")
    assert 0 < claim.minutes <= 20
    assert claim.reported
    assert claim.settings["steps"] > 0
    assert "unverified" not in claim.figures


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_stored_results_are_those_of_the_claim(name):
    content = results.read(name)
    if content is None:
        return
    claim = find(name)
    seeds = list(content["seeds"].values())
    margins = [claim.margin(numbers) for numbers in seeds]
    assert content["margins"] == pytest.approx(margins, abs=1e-4)
    assert content["held"] is held(margins)
    assert set(content["reported"]) <= set(content["mean"])
    for key, value in content["mean"].items():
        assert value == pytest.approx(fmean(n[key] for n in seeds), abs=1e-4)
    assert results.seeds_of(claim)  # measured with the settings of today
    assert content["sentence"] == claim.sentence
    assert (results.FOLDER / f"{name}.svg").exists()


def test_a_plot_is_a_file_that_does_not_change(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    numbers = {0: {"one": 1.0, "two": 2.0}, 1: {"one": 1.0, "two": 3.0}}
    plots = [results.draw(FAKE, numbers).read_text() for _ in range(2)]
    assert plots[0] == plots[1]
    assert plots[0].rstrip().endswith("</svg>")


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
        ("adapter_fusion", {"own": 0.7, "fusion": 0.8}, True),
        ("adapter_fusion", {"own": 0.8, "fusion": 0.7}, False),
        ("adapter_time", {"training": 0.7, "inference": 1.05}, True),
        ("adapter_time", {"training": 1.1, "inference": 1.05}, False),
        ("adapter_time", {"training": 0.7, "inference": 1.2}, False),
        ("adapter_drop", {"special0": 0.8, "special2": 0.79, "robust2": 0.77}, True),
        ("adapter_drop", {"special0": 0.8, "special2": 0.79, "robust2": 0.75}, False),
        ("adapter_drop", {"special0": 0.8, "special2": 0.75, "robust2": 0.77}, False),
        ("fusion_pruned", {"time": 0.5, "whole": 0.8, "pruned": 0.79}, True),
        ("fusion_pruned", {"time": 0.5, "whole": 0.8, "pruned": 0.77}, False),
        ("fusion_pruned", {"time": 1.1, "whole": 0.8, "pruned": 0.8}, False),
        ("hybrids", {"lora": 0.7, "mam": 0.8, "s4": 0.75}, True),
        ("hybrids", {"lora": 0.7, "mam": 0.6, "s4": 0.75}, False),
        ("hybrids", {"lora": 0.7, "mam": 0.8, "s4": 0.65}, False),
        ("mam", {"loss_mam": 1.04, "loss_full": 1.0}, True),
        ("mam", {"loss_mam": 1.06, "loss_full": 1.0}, False),
        ("tagging", {"f1_prompt": 0.1, "f1_v2": 0.2, "f1_full": 0.4}, False),
        ("tagging", {"f1_prompt": 0.1, "f1_v2": 0.3, "f1_full": 0.0}, False),
        ("adapters_full", {"adapters": 0.89, "full": 0.9, "percent": 3}, True),
        ("adapters_full", {"adapters": 0.88, "full": 0.9, "percent": 3}, False),
        ("adapters_full", {"adapters": 0.9, "full": 0.9, "percent": 5}, False),
        ("pfeiffer", {"one": 0.89, "equal": 0.8, "double": 0.9}, True),
        ("pfeiffer", {"one": 0.88, "equal": 0.9, "double": 0.8}, False),
        ("adapter_init", {"0.001": 0.8, "0.01": 0.9, "0.1": 0.9, "1": 0.5}, True),
        ("adapter_init", {"0.001": 0.4, "0.01": 0.9, "0.1": 0.9, "1": 0.5}, False),
        ("adamix", {"adamix": 0.9, "one": 0.8, "full": 0.85}, True),
        ("adamix", {"adamix": 0.9, "one": 0.8, "full": 0.95}, False),
        ("adamix_ablation", {"mean": 0.9, "no_consistency": 0.8, "random": 0.8}, True),
        ("adamix_ablation", {"mean": 0.9, "no_consistency": 0.95, "random": 0.8}, False),
        ("adamix_ablation", {"mean": 0.9, "no_consistency": 0.8, "random": 0.95}, False),
        ("adamix_sharing", {"up": 0.9, "none": 0.8}, True),
        ("adamix_cost", {"memory_ratio": 1.9, "seconds_ratio": 1.8}, True),
        ("adamix_cost", {"memory_ratio": 0.9, "seconds_ratio": 1.8}, False),
        ("adamix_cost", {"memory_ratio": 1.9, "seconds_ratio": 2.5}, False),
        ("adalora", {"adalora": 0.9, "lora": 0.8}, True),
    ],
)
def test_a_margin_is_positive_where_the_sentence_is_true(name, numbers, speaks_for_it):
    assert (find(name).margin(numbers) > 0) is speaks_for_it


@pytest.mark.parametrize(("least", "speaks_for_it"), [(0.7, True), (0.9, False)])
def test_every_number_of_tasks_must_be_faster(least, speaks_for_it):
    numbers = {f"dropped0_{count}": 1.0 for count in (2, 4, 8, 16)}
    numbers |= {f"dropped50_{count}": 0.6 for count in (4, 8, 16)} | {"dropped50_2": least}
    assert (find("shared_trunk").margin(numbers) > 0) is speaks_for_it


@pytest.mark.parametrize(("prefix", "speaks_for_it"), [(0.6, True), (0.9, False)])
def test_unipelt_must_be_better_than_each_member_with_both_sizes(prefix, speaks_for_it):
    members = ("lora", "prefix", "adapter")
    numbers = {f"{name}_{size}": 0.5 for name in members for size in (100, 500)}
    numbers |= {"prefix_500": prefix, "unipelt_100": 0.7, "unipelt_500": 0.8}
    assert (find("unipelt").margin(numbers) > 0) is speaks_for_it


def test_neighbours_of_vectors():
    table = torch.eye(6)
    table[1] = torch.tensor([0.8, 0.6, 0, 0, 0, 0])
    near = neighbours.nearest(3 * table[:1], table, 2)
    assert near == [[0, 1]]
    assert neighbours.share([0, 5], near) == 0.5
    assert neighbours.together(near, table) == pytest.approx(0.8)


def test_rows_are_drawn_with_a_seed():
    rows = list(range(50))
    assert experiment.drawn(rows, 5, 1) == experiment.drawn(rows, 5, 1)
    assert experiment.drawn(rows, 5, 1) != experiment.drawn(rows, 5, 2)
    assert sorted(experiment.drawn(rows, 99, 1)) == rows


def test_a_run_names_a_missing_data_set(tmp_path):
    run = Run(0, {}, tmp_path, None)
    with pytest.raises(DataError, match="has no e2e; name the folder with --data"):
        run.folder("e2e")


def test_labelled_texts_of_the_folder(tmp_path):
    for name, split, rows in (
        ("sst2", "train", [{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(8)]),
        ("sst2", "test", [{"text": "t", "label": "a"}] * 3),
        ("glue_rte", "train", [{"premise": "p", "hypothesis": "h", "label": "x"}] * 3),
        ("glue_rte", "dev", [{"premise": "q", "hypothesis": "i", "label": "x"}]),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / f"{split}.jsonl").write_text(lines)
    run = Run(0, {"train": 1, "test": 2}, tmp_path, None)
    data = experiment.labelled(run, "sst2")
    assert data.labels == ("a", "b")  # of all rows, though one is drawn
    assert (len(data.train), len(data.test)) == (1, 2)
    pairs = experiment.labelled(run, "glue_rte")
    assert pairs.test[0].fields["text"] == "q"  # the dev rows, whose labels are known
    assert pairs.test[0].fields["text_pair"] == "i"
