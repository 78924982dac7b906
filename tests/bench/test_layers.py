"""bench/layers.py: what is timed is what `fit` trains and what a file holds."""

import json

import pytest
import torch

import inlay
from bench import layers
from inlay import AdaLoRA, AdaMix, Fusion, LoRA, Pfeiffer
from tests.zoo import fresh

SMALL = {
    "LoRA": LoRA(rank=2),
    "AdaLoRA": AdaLoRA(rank=3, target=2),
    "AdaMix": AdaMix(),
}


def backbone():
    """A tiny encoder without the head of its task."""
    return fresh("bert").base_model.eval()


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A tiny encoder as every base, and small methods."""
    monkeypatch.setattr(layers, "base", lambda name: backbone())
    monkeypatch.setattr(layers, "METHODS", SMALL)
    monkeypatch.setattr(layers, "TASKS", (2,))
    monkeypatch.setattr(layers, "LENGTH", 8)
    monkeypatch.setattr(layers, "fusion", lambda count=3: _fusion(count))


def _fusion(count):
    names = tuple("abc"[:count])
    return Fusion(adapters=(Pfeiffer(bottleneck=4),) * count, names=names)


def test_everything_is_measured_and_stored(tmp_path, capsys):
    path = tmp_path / "layers.json"
    layers.main(["minilm", "--rounds", "1", "--out", str(path)])
    stored = json.loads(path.read_text())
    assert stored["machine"]["threads"] == torch.get_num_threads()
    measured = stored["minilm"]
    assert set(measured["training step of every method / all weights"]) == set(SMALL)
    assert set(measured["inference of every method / the base"]) == set(SMALL)
    assert set(measured["fusion pruned / fusion of 8, inference"]) == {"2 adapters", "the base"}
    assert set(measured["tasks on one input / each alone"]) == {
        f"2 tasks, {share:.0%} dropped" for share in layers.SHARES
    }
    memory = measured["AdaMix, MiB of a step"]
    assert memory["two passes"] > memory["one pass"] > 0


@pytest.mark.parametrize(("weight", "passes"), [(1.0, 2), (0.0, 1)])
def test_a_step_has_the_passes_that_the_method_asks_for(weight, passes):
    model = backbone()
    handle = inlay.attach(model, AdaMix(consistency_weight=weight)).train()
    count = []
    model.register_forward_pre_hook(lambda *_: count.append(1))
    layers.step(model, handle)()
    assert len(count) == passes


def test_a_twin_has_the_tensors_of_the_base_and_modules_of_its_own():
    model = backbone()
    twin = layers.twin(model)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert one is other
    assert not {*map(id, model.modules())} & {*map(id, twin.modules())}
    inlay.attach(twin, LoRA(rank=2))
    assert not inlay.attached(model)


def test_a_pass_for_use_has_what_a_file_holds():
    model = backbone()
    attached = []

    def note(twin):
        attached.append(twin)
        return twin

    with pytest.MonkeyPatch.context() as patch:
        original = layers.twin
        patch.setattr(layers, "twin", lambda base: note(original(base)))
        layers.used(model, AdaMix())
    [handle] = inlay.attached(attached[0]).values()
    assert type(handle.spec).__name__ == "Houlsby"  # the mean of the copies
