"""The base's own task head: noticed where it was never trained, learned, saved, and brought along."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

import inlay
from inlay.errors import BaseError, FileError, SiteError
from inlay.laws.case import perturb
from inlay.laws.compare import relative_error
from tests import zoo

IDS = torch.randint(8, 99, (2, 7), generator=torch.Generator().manual_seed(0))
BERT = {**zoo.DIMS, "vocab_size": 99}


def backbones() -> dict[str, tuple[hf.PreTrainedConfig, type, dict[str, tuple[type, list[str]]]]]:
    """name -> config, the class that pretraining leaves, and class -> its untrained layers."""
    return {
        "bert": (
            zoo.fresh("bert").config,
            hf.BertForMaskedLM,
            {
                "sequence": (hf.BertForSequenceClassification, ["bert.pooler.dense", "classifier"]),
                "token": (hf.BertForTokenClassification, ["classifier"]),
                "answer": (hf.BertForQuestionAnswering, ["qa_outputs"]),
            },
        ),
        "roberta": (
            zoo.fresh("roberta").config,
            hf.RobertaForMaskedLM,
            {
                "sequence": (
                    hf.RobertaForSequenceClassification,
                    ["classifier.dense", "classifier.out_proj"],
                ),
                "token": (hf.RobertaForTokenClassification, ["classifier"]),
                "answer": (hf.RobertaForQuestionAnswering, ["qa_outputs"]),
            },
        ),
        "llama": (
            zoo.fresh("llama").config,
            hf.LlamaForCausalLM,
            {
                "sequence": (hf.LlamaForSequenceClassification, ["score"]),
                "token": (hf.LlamaForTokenClassification, ["score"]),
            },
        ),
    }


CASES = [(name, kind) for name, (_, _, kinds) in backbones().items() for kind in kinds]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, (config, pretrained_class, _) in backbones().items():
        config.pad_token_id = 0
        torch.manual_seed(3)
        folders[name] = tmp_path_factory.mktemp(name)
        pretrained_class(config).save_pretrained(folders[name])
    return folders


def load(folder: Path, kind: type, seed: int, **more: Any) -> Any:
    torch.manual_seed(seed)
    return kind.from_pretrained(folder, **more).eval()


def answer(model: Any) -> Tensor:
    with torch.no_grad():
        output = model(input_ids=IDS)
    return output["logits"] if "logits" in output else torch.stack([output.start_logits, output.end_logits])  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_new_head_is_learned_saved_and_brought_along(
    pretrained: dict[str, Path], tmp_path: Path, name: str, kind: str
) -> None:
    cls, parts = backbones()[name][2][kind]
    model, other = load(pretrained[name], cls, 1), load(pretrained[name], cls, 2)
    bare = answer(other)
    assert relative_error(answer(model), bare) > 0.1  # their heads are random
    names = [n for n, _ in model.named_parameters()]
    before = copy.deepcopy(model.state_dict())
    start = answer(model)
    handle = inlay.attach(model, inlay.LoRA(rank=2))
    assert handle.spec == inlay.LoRA(rank=2) + inlay.BaseHead(parts=tuple(parts))
    assert torch.equal(answer(model), start)
    perturb(handle)
    expected = answer(model)
    path = handle.save(tmp_path / "x.safetensors")
    loaded = inlay.load(other, path)
    assert relative_error(answer(other), expected) < 1e-5
    loaded.detach()
    assert torch.equal(answer(other), bare)
    handle.detach()
    assert [n for n, _ in model.named_parameters()] == names
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_training_moves_it_through_trainer(pretrained: dict[str, Path], tmp_path: Path) -> None:
    model = load(pretrained["bert"], hf.BertForSequenceClassification, 1)
    before = model.classifier.weight.clone()
    handle = inlay.attach(model, inlay.LoRA(rank=2))
    assert handle.count() == sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = [{"input_ids": ids, "labels": torch.tensor(i % 2)} for i, ids in enumerate(IDS.repeat(8, 1))]  # fmt: skip
    options = hf.TrainingArguments(
        str(tmp_path), max_steps=20, learning_rate=0.02, report_to=[], use_cpu=True, save_strategy="no"
    )  # fmt: skip
    hf.Trainer(model, options, train_dataset=rows, callbacks=[inlay.InlayCallback(handle)]).train()
    assert torch.equal(model.classifier.weight, before)
    own = next(p.piece for p in handle.placed if p.site.name == "classifier.base_head")
    assert not torch.allclose(own.weight, before, atol=1e-3)
    model.eval()
    assert answer(model).argmax(-1).tolist() == [0, 1]
    expected, path = answer(model), handle.save(tmp_path / "x.safetensors")
    other = load(pretrained["bert"], hf.BertForSequenceClassification, 2)
    inlay.load(other, path)
    assert relative_error(answer(other), expected) < 1e-5
    handle.merge()
    assert relative_error(answer(model), expected) < 1e-5
    assert not inlay.attached(model)


def test_rows_have_heads_of_their_own(pretrained: dict[str, Path]) -> None:
    model = load(pretrained["roberta"], hf.RobertaForSequenceClassification, 1)
    expected = {}
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        perturb(inlay.attach(model, inlay.LoRA(rank=2), name=name))
    for name in ("a", "b", None):
        with inlay.rows(model, [name]):
            expected[name] = answer(model)
    with inlay.rows(model, ["b", None]):
        mixed = answer(model)
    assert relative_error(mixed[0], expected["b"][0]) < 1e-5
    assert relative_error(mixed[1], expected[None][1]) < 1e-5


def test_what_a_file_refuses(pretrained: dict[str, Path], tmp_path: Path) -> None:
    model = load(pretrained["llama"], hf.LlamaForSequenceClassification, 1)
    path = inlay.attach(model, inlay.LoRA(rank=2)).save(tmp_path / "x.safetensors")
    wide = load(pretrained["llama"], hf.LlamaForSequenceClassification, 1, num_labels=5)
    with pytest.raises((FileError, BaseError), match="score"):
        inlay.load(wide, path)
    assert not inlay.attached(wide)
    causal = load(pretrained["llama"], hf.LlamaForCausalLM, 1)
    with pytest.raises(SiteError, match="base_head"):
        inlay.load(causal, path)


def test_a_head_that_is_not_brought_along_must_be_the_same(tmp_path: Path) -> None:
    """Nothing is known of a model made from its config: then its head is looked at as a base's."""
    config = zoo.fresh("bert").config
    torch.manual_seed(0)
    model = hf.BertForSequenceClassification(config).eval()
    handle = inlay.attach(model, inlay.LoRA(rank=2))
    assert handle.spec == inlay.LoRA(rank=2)
    path = handle.save(tmp_path / "x.safetensors")
    other = copy.deepcopy(inlay.attached(model)["default"].detach())
    inlay.load(other, path).detach()
    with torch.no_grad():
        other.classifier.weight.normal_()
    with pytest.raises(BaseError, match="classifier"):
        inlay.load(other, path)


def test_what_cannot_be_learned_is_named(pretrained: dict[str, Path]) -> None:
    model = load(pretrained["bert"], hf.BertForSequenceClassification, 1)
    model.scale = torch.nn.Conv1d(2, 2, 1)
    with pytest.warns(UserWarning, match=r"no values for scale\.weight, scale\.bias"):
        inlay.attach(model, inlay.LoRA(rank=2))


def test_a_trained_base_keeps_its_head_and_so_does_one_with_a_head_of_the_inlay(
    pretrained: dict[str, Path], tmp_path: Path
) -> None:
    model = load(pretrained["bert"], hf.BertForSequenceClassification, 1)
    head = inlay.Head(labels=("no", "yes"))
    assert inlay.attach(model, inlay.LoRA(rank=2) + head).spec == inlay.LoRA(rank=2) + head
    inlay.attached(model)["default"].detach()
    model.save_pretrained(tmp_path)
    trained = load(tmp_path, hf.BertForSequenceClassification, 1)
    assert inlay.attach(trained, inlay.LoRA(rank=2)).spec == inlay.LoRA(rank=2)


def test_it_can_be_asked_for() -> None:
    model = hf.BertForSequenceClassification(zoo.fresh("bert").config).eval()
    handle = inlay.attach(model, inlay.BaseHead())
    assert sorted(p.site.name for p in handle.placed) == ["bert.pooler.dense.base_head", "classifier.base_head"]  # fmt: skip
    handle.detach()
    with pytest.raises(SiteError, match="no 'clasifier'; did you mean 'classifier'"):
        inlay.attach(model, inlay.BaseHead(parts=("clasifier",)))
    with pytest.raises(SiteError, match="base_head"):
        inlay.attach(zoo.fresh("llama"), inlay.BaseHead())
