"""Recipes: read, printed back, refused in one sentence, and carried out."""

import json

import pytest
import torch
import transformers as hf
import yaml
from rich.console import Console

import inlay
from inlay.errors import InlayError, RecipeError, TrainingError
from inlay.files.format import read
from inlay.hub import load_base
from inlay.training import Recipe, evaluate, run
from inlay.training.recipes import yaml as recipe_yaml
from tests.tasks import tiny as words
from tests.training import tiny

TEXT = """
base: BASE
method: LoRA(rank=2, dropout=0.1) + Prefix(length=2, mlp=None)
task:
  kind: classify
  template: "{text} it was"
  by: {words: {yes: good, no: bad}}   # YAML 1.1 would read true and false
data:
  train: {source: TRAIN, limit: 30}
  dev: {source: DEV}
  test: {source: DEV}
training: {lr: 1e-2, steps: 12, batch_size: 4, eval_every: 4, checkpoint_every: 2}
out: OUT
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A base and data on disk."""
    folder = tmp_path_factory.mktemp("recipe")
    config = hf.LlamaConfig(**{**tiny.CONFIG, "vocab_size": 99}, bos_token_id=1, eos_token_id=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf.LlamaForCausalLM(config).save_pretrained(folder / "base")
    words.tokenizer("decoder").save_pretrained(folder / "base")
    for name, count in (("train", 40), ("dev", 12)):
        rows = []
        for number in range(count):
            good = number % 2 == 0
            text = f"{'a bright film' if good else 'a dull film'} {words.WORDS[number % 20]}"
            label = "yes" if good else "no"
            rows.append({"text": text, "label": label, "source": text, "target": label})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


@pytest.fixture
def recipe_file(places, tmp_path):
    text = TEXT.replace("BASE", str(places / "base")).replace("OUT", str(tmp_path / "out"))
    for part in ("train", "dev"):
        text = text.replace(part.upper(), str(places / f"{part}.jsonl"))
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


# -------------------------------------------------------------------------- reading and writing


def test_a_recipe_prints_itself_back(recipe_file, tmp_path):
    recipe = Recipe.load(recipe_file)
    assert recipe.training.lr == 0.01
    assert recipe.task["by"]["words"] == {"yes": "good", "no": "bad"}
    printed = tmp_path / "printed.yaml"
    printed.write_text(recipe.dump())
    assert Recipe.load(printed) == recipe
    assert Recipe.load(printed).dump() == recipe.dump()
    assert "weight_decay: 0.0" in recipe.dump(), "defaults are told"


def test_every_field_can_be_set_by_its_dotted_name(recipe_file):
    recipe = Recipe.load(
        recipe_file,
        {
            "training.lr": "1e-4",
            "training.steps": "null",
            "training.betas": "[0.8, 0.95]",
            "data.train.limit": "5",
            "data.dev.template": "{text}",
            "task.by.auxiliary_weight": "0.1",
            "name": "7",
            "seed": "3",
            "method": "IA3()",
        },
    )
    assert recipe.training.lr == 1e-4
    assert recipe.training.steps is None
    assert recipe.training.betas == (0.8, 0.95)
    assert recipe.data.train.limit == 5
    assert recipe.data.dev.template == "{text}"
    assert recipe.make_task().by.auxiliary_weight == 0.1
    assert (recipe.name, recipe.seed) == ("7", 3)
    assert repr(recipe.make_spec()) == "IA3()"


def test_flags_alone_make_a_recipe():
    flags = {"base": "b", "method": "LoRA", "task.kind": "generate", "out": "o"}
    recipe = Recipe.load(None, {**flags, "data.train.source": "t"})
    assert recipe.data.train.source == "t"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("training.lrr", "1", "training.lrr: there is no such field; did you mean 'lr'?"),
        ("trainin.lr", "1", "trainin: there is no such field; did you mean 'training'?"),
        ("data.train.limt", "1", "data.train.limt: there is no such field; did you mean 'limit'?"),
        ("training.seed", "1", "training.seed: there is no such field; known: "),
        ("training.lr", "fast", "training.lr: input should be a valid number"),
        ("training.steps", "0", "training.steps: input should be greater than or equal to 1"),
        ("training.schedule", "lin", "training.schedule: input should be 'linear', 'cosine' or"),
        ("training.betas", "[0.9, 2]", "training.betas: input should be less than 1, not 2"),
        ("training.tokens", "64", "training: give batch_size or tokens, not both"),
        (
            "data.train",
            "x.jsonl",
            "data.train: write its fields, such as {source: …}, not 'x.jsonl'",
        ),
        ("data.train", "null", "data.train: write its fields, such as"),
        ("task", "classify", "task: write its fields, such as {kind: classify}, not 'classify'"),
        ("training", "5", "training: write its fields, such as {lr: …}, not 5"),
        ("training.betas", "[0.9]", "training.betas has too few values: [0.9]"),
        ("training.betas", "0.9", "training.betas: write a list, in brackets, not 0.9"),
        ("data.dev.template", "5", None),
        ("data.dev.template", "[5]", "data.dev.template: input should be a valid string"),
        ("data.dev.template", "{text", "data.dev.template: template '{text' cannot be read"),
        ("data.dev.columns", '{"txt": "a"}', "data.dev.columns: there is no field 'txt' to fill;"),
        ("data.dev.source.x", "5", "data.dev.source.x: 'source' has no fields"),
        ("method", "LoRa()", "method: no method is called 'LoRa'; did you mean 'LoRA'?"),
        ("method", "LoRA(rnk=3)", "method: LoRA has no field 'rnk'; did you mean 'rank'?"),
        ("method", "LoRA(rank=0)", "method: LoRA: rank must be a number above 0, not 0"),
        ("method", "LoRA(at=('attn.x',))", "method: no role is called 'attn.x'; did you mean"),
        ("method", "LoRA(", "method: cannot read the method 'LoRA('"),
        ("task.kind", "clasify", "task: there is no task 'clasify'; did you mean 'classify'?"),
        ("task.tmplate", "x", "task: task 'classify' has no field 'tmplate'; did you mean"),
        ("task.metric", "acuracy", "task: classify: metric='acuracy' is impossible"),
        ("task", "{}", "task: the kind of task is missing"),
        ("task.task", "generate", "task: there is no field 'task'; did you mean 'kind'?"),
        ("dtype", "float61", "dtype: input should be 'float32' or 'bfloat16', not 'float61'"),
        ("name", "../x", "name: a name is letters, digits, '_' and '-', not '../x'"),
        ("out", "null", "out: input should be a valid string"),
    ],
)
def test_every_problem_is_one_sentence_with_its_place(recipe_file, name, value, message):
    if message is None:
        assert Recipe.load(recipe_file, {name: value}).data.dev.template == "5"
        return
    with pytest.raises(RecipeError) as caught:
        Recipe.load(recipe_file, {name: value})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: x\nbase: y\n", "r.yaml:2: not valid YAML: 'base' is given twice"),
        ("base: [x\n", "r.yaml:2: not valid YAML: "),
        ("base: !!python/object:os.system x\n", "r.yaml:1: not valid YAML: "),
        ("? [1]\n: 2\n", "r.yaml:1: not valid YAML: a key is a word"),
        ("- x\n", "r.yaml: a recipe is a mapping"),
        ("", "r.yaml: a recipe is a mapping"),
        (
            "base: x\n",
            "the recipe r.yaml has 3 faults: (1) task is missing; (2) data is missing; (3) out is",
        ),
        (
            "base: x\nmethd: LoRA\nout: o\ntask: {kind: generate}\ndata: {train: {source: x}}\n",
            "methd: there is no such field; did you mean 'method'?",
        ),
    ],
)
def test_files_that_are_no_recipes(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.load("r.yaml")
    assert str(caught.value).startswith(message)
    with pytest.raises(RecipeError, match=r"cannot read the recipe none\.yaml"):
        Recipe.load("none.yaml")


def test_yaml_is_read_as_people_mean_it():
    read = recipe_yaml.read(
        "{a: 1e-4, b: no, c: on, d: 12, e: 1.5, f: null, g: true, h: .inf}", "x"
    )
    want = {"a": 1e-4, "b": "no", "c": "on", "d": 12, "e": 1.5, "f": None, "g": True}
    assert read == {**want, "h": float("inf")}
    tricky = {
        "a": ["1e-4", "no", "12", "null", "", " x", "true", ".5"],
        "b": 1e-05,
        "c": -3,
        "d": "",
    }
    assert recipe_yaml.read(recipe_yaml.write(tricky), "x") == tricky
    assert yaml.safe_load(recipe_yaml.write({"a": {"b": [1, "x y"]}})) == {"a": {"b": [1, "x y"]}}


# ---------------------------------------------------------------------------------- carrying out


def test_a_recipe_is_carried_out(recipe_file, tmp_path):
    recipe = Recipe.load(recipe_file)
    console = Console(file=tiny.quiet().file, record=True, width=200)
    outcome = run(recipe, console)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint.safetensors",
        "default.safetensors",
        "log.jsonl",
        "recipe.yaml",
        "result.json",
    ]
    assert Recipe.load(out / "recipe.yaml") == recipe
    content = json.loads((out / "result.json").read_text())
    assert content["dev"] == outcome.dev
    assert content["training"]["steps"] == 12
    assert content["recipe"]["method"] == recipe.method
    assert "untouched: accuracy 0." in console.export_text()
    model, tokenizer = load_base(recipe.base)
    task = recipe.make_task()
    task.bind(model, tokenizer)
    dev = recipe.data.dev.load(task)
    assert evaluate(model, task, dev) == outcome.untouched
    handle = inlay.load(model, outcome.path, tokenizer=tokenizer)
    assert evaluate(model, task, dev) == outcome.dev == outcome.test
    assert outcome.dev["accuracy"] > outcome.untouched["accuracy"]
    assert outcome.base_parameters == sum(p.numel() for p in handle.detach().parameters())
    assert outcome.parameters == handle.count()

    resumed = run(recipe, tiny.quiet())
    assert tiny.numbers(resumed.training) == tiny.numbers(outcome.training)
    with pytest.raises(TrainingError, match="seed was 0 and is 1"):
        run(Recipe.load(recipe_file, {"seed": "1"}), tiny.quiet())
    assert Recipe.load(out / "recipe.yaml") == recipe
    fresh = run(Recipe.load(recipe_file, {"seed": "1"}), tiny.quiet(), resume=False)
    assert fresh.training.loss != outcome.training.loss


def test_a_file_where_the_folder_should_be_is_refused_at_once(recipe_file, tmp_path):
    (tmp_path / "taken").write_text("x")
    changes = {"out": str(tmp_path / "taken"), "base": str(tmp_path / "nowhere")}  # no base either
    with pytest.raises(RecipeError, match="out is a folder to write into, and .*taken is a file"):
        run(Recipe.load(recipe_file, changes), tiny.quiet())


def test_an_ensemble_is_trained_and_votes(recipe_file, tmp_path):
    recipe = Recipe.load(recipe_file, {"ensemble": "3", "training.steps": "3"})
    outcome = run(recipe, tiny.quiet())
    out = tmp_path / "out"
    files = [out / f"{name}.safetensors" for name in ("default", "default-2", "default-3")]
    assert all(file.is_file() for file in files)
    assert len({file.read_bytes() for file in files}) == 3
    votes = outcome.ensemble
    assert len(votes.members) == 3
    assert votes.members[0] == outcome.test
    content = json.loads((out / "result.json").read_text())["ensemble"]
    assert content["vote"] == votes.vote
    model, tokenizer = load_base(recipe.base)
    task = recipe.make_task()
    task.bind(model, tokenizer)
    handle = inlay.load(model, files[2], tokenizer=tokenizer)
    assert handle.name == "default-3"
    assert evaluate(model, task, recipe.data.test.load(task)) == votes.members[2]
    single = run(Recipe.load(recipe_file, {"training.steps": "3", "out": str(tmp_path / "b")}),
                tiny.quiet())  # fmt: skip
    assert single.test == votes.members[0]
    assert single.ensemble is None


def test_the_same_recipe_gives_the_same_inlay(recipe_file, tmp_path):
    files = []
    for folder in ("a", "b"):
        run(Recipe.load(recipe_file, {"out": str(tmp_path / folder)}), tiny.quiet())
        files.append(read(tmp_path / folder / "default.safetensors"))
    assert files[0].header == files[1].header
    assert tiny.same(files[0].tensors, files[1].tensors)


def test_a_task_with_a_trained_head_gets_one(recipe_file):
    plain = {"task": '{"kind": "classify"}', "method": "LoRA(rank=2)", "training.lr": "3e-2"}
    outcome = run(Recipe.load(recipe_file, plain), tiny.quiet())
    file = read(outcome.path)
    header, tensors = file.header, file.tensors
    assert "final/1/head/weight" in tensors
    assert '"labels": ["no", "yes"]' in header["spec"]
    assert outcome.untouched is not None
    with_head = {**plain, "method": "Head(labels=('no', 'yes'), pool='last')", "name": "own"}
    outcome = run(Recipe.load(recipe_file, with_head), tiny.quiet(), resume=False)
    assert set(read(outcome.path).tensors) == {
        "final/0/head/weight",
        "final/0/head/bias",
    }


@pytest.mark.parametrize("by", ["head", "mean"])
def test_choices_are_learned(recipe_file, tmp_path, by):
    rows = [
        {
            "premise": f"the {word}",
            "a": "a cat",
            "b": "a dog",
            "gold": "a cat" if number % 2 else "a dog",
        }
        for number, word in enumerate(words.WORDS[:20])
    ]
    path = tmp_path / "copa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"kind": "choose", "by": by, "template": "{premise} sat", "choices": ["a", "b"]}
    source = {"source": str(path), "columns": {"label": "gold"}}
    changes = {"task": task, "data": {"train": source, "dev": source}, "method": "LoRA(rank=2)"}
    flags = {name: json.dumps(value) for name, value in changes.items()} | {
        "method": "LoRA(rank=2)"
    }
    outcome = run(Recipe.load(recipe_file, flags), tiny.quiet())
    assert outcome.dev is not None
    assert outcome.training.steps == 12
    assert ("final/1/head/weight" in read(outcome.path).tensors) == (by == "head")


def test_virtual_tokens_are_placed_and_measured_untouched(recipe_file, tmp_path):
    plain = {"method": "PTuning(length=3)", "training.steps": "2"}
    outcome = run(Recipe.load(recipe_file, plain), tiny.quiet())
    assert outcome.recipe.task["template"].count("{p") == 2
    assert outcome.untouched is not None
    assert Recipe.load(tmp_path / "out" / "recipe.yaml") == outcome.recipe


@pytest.mark.processor
def test_text_is_generated_without_dev_or_test(recipe_file):
    flags = {"task": '{"kind": "generate", "generation": {"max_new_tokens": 3}}'}
    flags |= {"data.dev": "null", "data.test": "null", "training.eval_every": "null"}
    outcome = run(Recipe.load(recipe_file, {**flags, "dtype": "bfloat16"}), tiny.quiet())
    assert outcome.untouched is outcome.dev is outcome.test is outcome.training.best is None
    tested = {**flags, "data.test": json.dumps({"source": str(recipe_file.parent / "none.jsonl")})}
    with pytest.raises(InlayError, match=r"none\.jsonl"):
        run(Recipe.load(recipe_file, tested), tiny.quiet())
