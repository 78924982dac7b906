"""Pattern-exploiting training: soft labels, generations, pattern files, and whole runs."""

import json
import random
import sys

import pytest
import torch

import inlay
from inlay.errors import DataError, InlayError, RecipeError, TrainingError
from inlay.hub import load_base
from inlay.tasks import Classify, TrainedHead, Verbalizer, auxiliary
from inlay.training import evaluate, fit
from inlay.training.pet.auxiliary_text import AuxiliaryText, pair_with_texts
from inlay.training.pet.distillation import score_examples, weighted_mean, with_scores
from inlay.training.pet.generations import labelling_models, select_texts, texts_per_label
from inlay.training.pet.patterns import Patterns
from inlay.training.pet.pet import pet
from inlay.training.pet.recipe import PetRecipe
from inlay.training.recipes.recipe import Recipe
from tests import zoo
from tests.tasks.tiny import KINDS, examples, loss_of, refused, sentinels, tokenizer
from tests.training import tiny

PATTERNS = """
patterns:
  - "{text} it was {mask}"
  - "film {text} all {mask}"
  - "the plot {text} {mask}"
verbalizer: {no: bad, yes: [good, fine]}
"""
RECIPE = """
base: BASE
method: LoRA(rank=2)
patterns: PATTERNS
data:
  train: {source: TRAIN, shots: 4}
  unlabelled: {source: TEXTS}
  test: {source: TEST}
training: {lr: 1e-2, steps: 12, batch_size: 4}
out: OUT
"""


def rows(count, first=0):
    examples = []
    for number in range(first, first + count):
        good = number % 2 == 0
        text = f"{'bright new' if good else 'dull old'} film {('cat', 'dog', 'mat')[number % 3]}"
        examples.append({"text": text, "label": "yes" if good else "no"})
    return examples


def write(path, examples):
    path.write_text("".join(json.dumps(row) + "\n" for row in examples))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A base of each kind, rows, and patterns on disk."""
    folder = tmp_path_factory.mktemp("pet")
    for family, kind in KINDS.items():
        zoo.fresh(family).save_pretrained(folder / family)
        read = sentinels() if family == "t5" else tokenizer(kind, bos=True)
        read.save_pretrained(folder / family)
    write(folder / "train.jsonl", rows(12))
    write(folder / "texts.jsonl", [{**row, "label": "secret"} for row in rows(110, 12)])
    write(folder / "test.jsonl", rows(12, 200))
    (folder / "patterns.yaml").write_text(PATTERNS)
    return folder


@pytest.fixture
def recipe(places, tmp_path):
    """A recipe for one of the bases, with other fields."""

    def make(family="llama", **changes):
        text = RECIPE.replace("BASE", str(places / family)).replace("OUT", str(tmp_path / "out"))
        for part in ("train", "texts", "test"):
            text = text.replace(part.upper(), str(places / f"{part}.jsonl"))
        path = tmp_path / "pet.yaml"
        path.write_text(text.replace("PATTERNS", str(places / "patterns.yaml")))
        return PetRecipe.load(path, {name: json.dumps(value) for name, value in changes.items()})

    return make


# --------------------------------------------------------------------- soft labels


def test_equal_weights_are_the_mean_and_others_weigh():
    scores = torch.randn(3, 5, 2)
    for weight in (1.0, 0.3, 0.0):
        torch.testing.assert_close(weighted_mean(scores, torch.full((3,), weight)), scores.mean(0))
    torch.testing.assert_close(
        weighted_mean(scores, torch.tensor([0.0, 3.0, 1.0])), (3 * scores[1] + scores[2]) / 4
    )


@torch.no_grad()
def test_inlays_and_patterns_predict_in_one_batch_as_each_alone():
    model = zoo.fresh("llama")
    patterns = Patterns.model_validate(
        {"patterns": ["{text} it was {mask}", "all {text} {mask}"],
         "verbalizer": {"no": "bad", "yes": ["good", "fine"]}}
    )  # fmt: skip
    data = examples(*({"text": row["text"]} for row in rows(5)))
    tasks = patterns.tasks()
    for number, task in enumerate(tasks):
        task.bind(model, tokenizer("decoder"))
        torch.manual_seed(number)
        handle = inlay.attach(model, inlay.LoRA(rank=2), name=f"m{number}")
        for parameter in handle.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    scores = score_examples(model, tasks, ["m0", "m1"], data, batch_size=4)
    assert scores.shape == (2, 5, 2)
    for number, task in enumerate(tasks):
        with inlay.rows(model, [f"m{number}"]):
            expected = task.outputs(model, task.collate(task.encode_all(data))).scores
        torch.testing.assert_close(scores[number], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores[0], scores[1])
    labelled = with_scores(data, scores[0])
    assert [row.fields["scores"] for row in labelled] == scores[0].tolist()


# --------------------------------------------------------------------- generations


def test_sets_grow_fivefold_and_keep_the_balance_of_labels():
    for generation, total in enumerate((12, 60, 300)):
        counts = texts_per_label([4, 8], 5, generation, first_set_labelled=True)
        assert sum(counts) + 12 == total
        assert counts[1] == 2 * counts[0]
        assert (
            texts_per_label([10, 10], 5, generation, first_set_labelled=False)
            == [10 * 5**generation] * 2
        )


def test_a_quarter_of_the_others_labels_and_never_the_model_itself():
    generator = random.Random(0)
    for models, size in ((2, 1), (4, 1), (9, 2), (13, 3)):
        for model in range(models):
            for _ in range(20):
                labelling = labelling_models(model, models, 0.25, generator)
                assert model not in labelling
                assert len(set(labelling)) == size


def test_texts_are_picked_once_and_as_many_of_each_label_as_are_wanted():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(60, 3, generator=generator)
    for texts in (generator, None):
        selected = select_texts(scores, [5, 10, 20], texts)
        assert len({text for text, _ in selected}) == 35
        assert [sum(label == number for _, label in selected) for number in range(3)] == [5, 10, 20]
    best = scores.argmax(1)
    drawn = select_texts(scores, [5, 5, 5], generator)
    assert all(best[text] == label for text, label in drawn)


def test_the_surest_are_picked_and_fill_up_a_label_that_wins_nothing():
    scores = torch.tensor([[5.0, 0], [1, 0], [4, 0], [2, 0], [3, 0]])
    assert select_texts(scores, [2, 1], None) == [(0, 0), (2, 0), (1, 1)]
    selected = select_texts(scores, [1, 2], torch.Generator().manual_seed(0))
    (first,) = (text for text, label in selected if label == 0)
    remaining = sorted({0, 1, 2, 3, 4} - {first}, key=lambda text: float(scores[text, 0]))
    assert sorted(text for text, label in selected if label == 1) == sorted(remaining[:2])


def test_others_label_for_every_model(recipe, monkeypatch):
    """Every model learns from rows of which a fifth are by hand; none labels for itself."""
    module = sys.modules["inlay.training.pet.pattern_models"]

    calls = []
    real = module.labelling_models

    def record(number, *more):
        calls.append((number, real(number, *more)))
        return calls[-1][1]

    monkeypatch.setattr(module, "labelling_models", record)
    result = pet(recipe(generations=2, seeds=2, **{"training.steps": 2}), tiny.quiet())
    assert [number for number, _ in calls] == [0, 1, 2, 3, 4, 5]
    assert all(number not in others for number, others in calls)
    assert [model.rows for model in result.generations[0].models] == [8] * 6
    assert [model.rows for model in result.generations[1].models] == [40] * 6


# --------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("family", KINDS)
def test_a_run_from_patterns_to_a_classifier(places, recipe, family):
    steps = {"lr": 3e-2, "steps": 40, "batch_size": 8}
    plan = recipe(family, training=steps)
    result = pet(plan, tiny.quiet())
    out = places.__class__(plan.out)
    assert result.untouched[0].pattern == "{text} it was {mask}"
    assert all(pattern.weight == pattern.train for pattern in result.untouched)
    assert result.generations[-1].ensemble["accuracy"] > 0.9
    assert result.test["accuracy"] > 0.9
    assert set(result.spread) == {"untouched", "trained"}
    stored = json.loads((out / "result.json").read_text())
    assert stored["test"] == result.test
    assert PetRecipe.load(out / "pet.yaml") == plan
    model, tokenizer_loaded = load_base(str(places / family))
    for number in (1, 2, 3):
        inlay.load(model, out / f"pattern-{number}.safetensors", tokenizer=tokenizer_loaded)
    inlay.load(model, result.path, tokenizer=tokenizer_loaded)
    classifier = Recipe.load(out / "recipe.yaml")
    task = classifier.make_task()
    task.bind(model, tokenizer_loaded)
    with inlay.rows(model, ["classifier"]):
        assert evaluate(model, task, classifier.data.test.load(task)) == result.test


def test_the_same_recipe_gives_the_same_numbers_and_goes_on(recipe):
    plan = recipe(generations=2, classifier="words", **{"training.steps": 2})
    first = pet(plan, tiny.quiet())
    resumed = pet(plan, tiny.quiet())
    fresh = pet(plan, tiny.quiet(), resume=False)
    for other in (resumed, fresh):
        assert first.generations == other.generations
        assert first.test == other.test
    assert first.training.seconds == resumed.training.seconds


def test_generations_begin_without_labels(recipe, monkeypatch):
    module = sys.modules["inlay.training.pet.pattern_models"]
    calls = []
    real = module.labelling_models

    def record(model, models, *more):
        calls.append((model, models))
        return real(model, models, *more)

    monkeypatch.setattr(module, "labelling_models", record)
    plan = recipe(**{"data.train": None, "weights": "uniform", "first": 2, "generations": 2, "seeds": 2,
                     "training.steps": 2})  # fmt: skip
    result = pet(plan, tiny.quiet())
    assert calls[:6] == [(0, 3), (0, 3), (1, 3), (1, 3), (2, 3), (2, 3)]  # untouched patterns
    assert calls[6:] == [(model, 6) for model in range(6)]
    assert [entry.rows for entry in result.generations[0].models] == [4] * 6
    assert [entry.rows for entry in result.generations[1].models] == [20] * 6
    assert all(entry.train is None and entry.weight == 1 for entry in result.untouched)


def test_all_weights_learn_and_each_model_begins_with_the_base(places, recipe, monkeypatch):
    starts = []
    real = fit

    def record(model, *more, **given):
        starts.append(model.get_input_embeddings().weight.detach().clone())
        return real(model, *more, **given)

    for name in ("pattern_models", "pet"):
        monkeypatch.setattr(sys.modules[f"inlay.training.pet.{name}"], "fit", record)
    plan = recipe(method=None, **{"training.base_lr": 1e-3, "training.steps": 3})
    result = pet(plan, tiny.quiet())
    assert len(starts) == 4
    assert all(torch.equal(start, starts[0]) for start in starts)
    assert (result.base / "config.json").exists()
    out = places.__class__(plan.out)
    assert not list(out.glob("pattern-*"))
    model, tokenizer_loaded = load_base(str(result.base))
    assert not torch.equal(model.get_input_embeddings().weight, starts[0])
    inlay.load(model, result.path, tokenizer=tokenizer_loaded)


# ------------------------------------------------------------------- texts beside labelled rows


TEXTS = examples(
    *({"text": f"the {word} was old"} for word in ("cat", "big dog", "red mat", "film"))
)
FEW = examples({"text": "a bright film", "label": "yes"}, {"text": "dull", "label": "no"})


def test_every_row_gets_a_text_and_the_shorter_list_comes_again():
    pairs = pair_with_texts(FEW, TEXTS, 0)
    assert [pair.fields["text"] for pair in pairs] == ["a bright film", "dull"] * 2
    assert sorted(pair.text.fields["text"] for pair in pairs) == sorted(
        pair.fields["text"] for pair in TEXTS
    )
    assert pairs == pair_with_texts(FEW, TEXTS, 0)
    orders = {
        tuple(id(pair.text) for pair in pair_with_texts(FEW, TEXTS, seed)) for seed in range(8)
    }
    assert len(orders) > 1
    assert len(pair_with_texts(FEW * 5, TEXTS, 0)) == 10


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_loss_is_the_tasks_and_that_of_the_texts(family, monkeypatch):
    monkeypatch.setattr(auxiliary, "SELECTED", 0.4)
    model = zoo.fresh(family)
    task = Classify(template="{text} it was {mask}", by=Verbalizer({"no": "bad", "yes": "good"}))
    task.bind(model, tokenizer(KINDS[family]))
    both = AuxiliaryText(task=task, weight=0.3)
    encoded = both.encode_all(pair_with_texts(FEW, TEXTS, 0))
    torch.manual_seed(1)
    loss, count = loss_of(both, model, both.collate(encoded))
    torch.manual_seed(1)
    task_loss, _ = loss_of(task, model, task.collate([row.original for row in encoded]))
    texts = task.collate([row.text for row in encoded])
    inputs, targets = auxiliary.language_model_targets(task.bound, texts.inputs, texts.positions)
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    logs = logits.log_softmax(-1).flatten(0, 1)[targets.positions]
    costs = -logs.gather(1, targets.tokens[:, None]).squeeze(1)
    width = texts.inputs["input_ids"].shape[1]
    # A row of which nothing is hidden has no mean.
    means = [
        costs[of_row].mean() for n in range(4) if (of_row := targets.positions // width == n).any()
    ]
    assert count == 4 and len(means) > 2
    torch.testing.assert_close(loss, 0.7 * task_loss + 0.3 * torch.stack(means).sum())


def test_patterns_learn_with_texts_beside_their_rows(recipe, monkeypatch):
    calls = []
    real = fit

    def record(model, handle, task, data, **given):
        calls.append((task.name, len(data), {example.fields.get("label") for example in data}))
        return real(model, handle, task, data, **given)

    for name in ("pattern_models", "pet"):
        monkeypatch.setattr(sys.modules[f"inlay.training.pet.{name}"], "fit", record)
    plain = pet(recipe(), tiny.quiet(), resume=False)
    plan = recipe(auxiliary_weight=0.5)
    result = pet(plan, tiny.quiet(), resume=False)
    assert [name for name, *_ in calls] == ["classify"] * 4 + ["auxiliary_text"] * 3 + ["classify"]
    assert calls[4] == ("auxiliary_text", 110, {"no", "yes"})
    assert result.generations[0].models != plain.generations[0].models or (
        result.test != plain.test or result.training.loss != plain.training.loss
    )


# --------------------------------------------------------------------- what is refused


def test_files_of_patterns_that_make_no_sense(tmp_path):
    path = tmp_path / "patterns.yaml"

    def read(text):
        path.write_text(text)
        return Patterns.load(path)

    words = "verbalizer: {no: bad, yes: good}\n"
    for text, *needles in (
        (words, "patterns is missing"),
        ("patterns: []\n" + words, "patterns:"),
        ('patterns: ["{text}"]\n' + words, "has no {mask}", "'{text}'"),
        ('patterns: ["{mask} {text} {mask}"]\n' + words, "has 2 {mask}"),
        ('patterns: ["{text {mask}"]\n' + words, "template"),
        ('patterns: ["{text} {mask}"]\n', "verbalizer is missing"),
        ('patterns: ["{text} {mask}"]\nwords: {}\n' + words, "words: there is no such field"),
        ("just text", "patterns and verbalizer"),
    ):
        refused(lambda text=text: read(text), str(path), *needles, error=RecipeError)
    refused(lambda: Patterns.load(tmp_path / "none.yaml"), "cannot read", error=RecipeError)
    refused(read('patterns: ["so {mask}"]\n' + words).tasks, "has no {column}", error=InlayError)


def test_labels_and_columns_that_the_patterns_do_not_know(places, recipe, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(PATTERNS.replace("no: bad, ", "never: bad, "))
    plan = recipe(patterns=str(path))
    refused(lambda: pet(plan, tiny.quiet()), "there is no label 'no'", error=DataError)
    path.write_text(PATTERNS.replace("{text} it", "{txt} it"))
    refused(
        lambda: pet(plan, tiny.quiet()), "no column 'txt'; did you mean 'text'?", error=DataError
    )
    path.write_text(PATTERNS.replace("all {mask}", "{mask} all"))
    refused(lambda: pet(plan, tiny.quiet()), "{mask} must be at its end", error=InlayError)


def test_recipes_that_make_no_sense(recipe, places, tmp_path):
    for changes, *needles in (
        ({"method": None}, "nothing would be trained"),
        ({"method": "LoRA + Head(labels=['no', 'yes'])"}, "leave the head out"),
        ({"data.train": None}, "weights: uniform"),
        ({"distil": {"base_lr": 1e-3}}, "both have base_lr"),
        ({"training.patience": 2}, "leave training.patience out"),
        ({"growth": 1}, "growth"),
        ({"pattern": "x"}, "did you mean 'patterns'?"),
    ):
        refused(lambda changes=changes: recipe(**changes), *needles, error=RecipeError)
    path = tmp_path / "one.yaml"
    path.write_text('patterns: ["{text} {mask}"]\nverbalizer: {no: bad, yes: good}\n')
    single = recipe(patterns=str(path), generations=2)
    refused(
        lambda: pet(single, tiny.quiet()), "no model labels texts for itself", error=RecipeError
    )
    many = recipe(generations=3)
    refused(lambda: pet(many, tiny.quiet()), "takes 192 unlabelled texts, and there are 110",
            error=DataError)  # fmt: skip
    reading = recipe("t5", auxiliary_weight=0.1)
    refused(lambda: pet(reading, tiny.quiet()), "auxiliary loss needs a decoder or an encoder",
            error=InlayError)  # fmt: skip
    virtual = recipe(method="PTuning(length=2)")
    refused(lambda: pet(virtual, tiny.quiet()), "virtual tokens", error=TrainingError)


def test_a_classifier_of_other_columns_than_text():
    patterns = Patterns.model_validate(
        {"patterns": ["{premise} ? {mask} {hypothesis}"], "verbalizer": {"no": "no", "yes": "yes"}}
    )
    assert patterns.columns == ("premise", "hypothesis")
    pair = patterns.model_copy(update={"patterns": ["{text} ? {mask} {text_pair}"]})
    assert pair.head_task().template is None
    assert patterns.head_task().template == "{premise}\n{hypothesis}"
    assert patterns.head_task() == Classify(
        by=TrainedHead(("no", "yes")), template="{premise}\n{hypothesis}"
    )


def test_bad_rows_of_every_kind_end_a_run_before_it_begins(recipe, tmp_path):
    too_long = {"text": "film " * 90, "label": "yes"}
    texts, train = tmp_path / "texts.jsonl", tmp_path / "train.jsonl"
    write(texts, [*rows(4), too_long])
    write(train, rows(8))
    train.write_text(f"{train.read_text()}not json\n")
    data = {"unlabelled": {"source": str(texts)}, "train": {"source": str(train)}}
    with pytest.raises(DataError, match="the data has 2 faults") as caught:
        pet(recipe(data=data), tiny.quiet())
    assert "train.jsonl:9: not valid JSON" in str(caught.value)
    assert "texts.jsonl:5: its" in str(caught.value)
    write(train, rows(8))
    with pytest.raises(DataError, match=r"texts.jsonl:5: its"):
        pet(recipe(data=data), tiny.quiet())
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").rglob("log.jsonl"))
