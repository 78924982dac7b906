"""Activations below every piece, kept between epochs: the same numbers, fewer blocks run."""

import io
import json
import os
import signal
from collections import Counter
from typing import ClassVar

import pytest
import torch
from rich.console import Console

from inlay import Houlsby, LayerNorm, LoRA, Prompt, TopLayers
from inlay.core.site import Where
from inlay.errors import TrainingError
from inlay.tasks.base import TASKS
from inlay.tasks.batch import Batch
from inlay.tasks.rows import padded, padded_inputs
from inlay.training import fit
from inlay.training.loop import kept, reuse
from tests import zoo
from tests.core import interfaces
from tests.training import tiny


class Pairs(tiny.Recite):
    """For an encoder–decoder: a text -> the same text."""

    name: ClassVar[str] = "pairs"

    def collate(self, rows):
        inputs = padded_inputs([row.input_ids for row in rows], 0)
        inputs["decoder_input_ids"] = padded([[2, *row.labels] for row in rows], 0)
        return Batch(inputs)


del TASKS["pairs"]

PAIRS = ("t5", "bart")


def base(family):
    return zoo.fresh(family).double()  # what is nought but for rounding stays it under Adam


def runs(model):
    """How often each block runs, by its place."""
    counts = Counter()
    handles = []
    for name, module in model.named_modules():
        if name.endswith(("q_proj", ".q", "c_attn", "self.query")):
            hook = module.register_forward_hook(lambda *_, name=name: counts.update([name]))
            handles.append(hook)
    return counts, handles


def train(folder, family="llama", what=None, *, model=None, rows=None, epochs=3, **options):
    model = base(family) if model is None else model
    model, handle = tiny.attached(TopLayers(layers=1) if what is None else what, model=model)
    model.inlays.double()
    counts, handles = runs(model)
    kind = Pairs if model.config.is_encoder_decoder else tiny.Recite
    console = Console(file=io.StringIO(), width=500)
    options = {"dropout": False, "batch_size": 4, "lr": 1e-2, "console": console, **options}
    fit(
        model,
        handle,
        tiny.task(model, kind),
        tiny.examples(10) if rows is None else rows,
        epochs=epochs,
        folder=folder,
        **options,
    )
    for hook in handles:
        hook.remove()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    facts = next((line.pop("reuse") for line in lines if "reuse" in line), None)
    numbers = [line["loss"] for line in lines if "loss" in line]
    scores = [line["scores"]["likelihood"] for line in lines if "scores" in line]
    state = tiny.state(handle)
    text = console.file.getvalue()
    assert not any("forward" in vars(module) for module in model.modules())
    handle.detach()
    return (numbers, scores, state), facts, counts, text


def close(a, b):
    assert len(a[0]) == len(b[0]) > 0
    assert a[0] == pytest.approx(b[0], rel=1e-9)
    assert a[1] == pytest.approx(b[1], rel=1e-9)
    assert a[2].keys() == b[2].keys()
    for name, tensor in a[2].items():
        torch.testing.assert_close(tensor, b[2][name], rtol=1e-6, atol=1e-8)


LAST = Where(("norm.final",))
TOP = Where(("attn.q", "attn.v"), layers=(-1,))


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "bart"])
def test_the_numbers_are_the_same_and_blocks_below_the_pieces_run_once(tmp_path, family, place):
    dev = tiny.examples(3, seed=1)
    plain, *_ = train(tmp_path / "a", family, dev=dev, reuse="never")
    reused, facts, after, text = train(tmp_path / "b", family, dev=dev, reuse=place)
    close(reused, plain)
    stacks = 2 if family in PAIRS else 1
    assert facts["passes"] == 3 * 13 * stacks
    assert facts["skipped"] == 2 * 13 * stacks
    assert "reuse: what the first" in text
    assert f"{facts['skipped']} of {facts['passes']} times a row skipped" in text
    # two small texts run before, above the pieces four times, and below three times
    # twelve passes in three epochs; before them two small texts, four times up to the top
    assert set(after.values()) == {12 + 4, 4 + 3}
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "checkpoint.safetensors",
        "log.jsonl",
    ]


def test_pieces_behind_the_last_block_leave_none_to_run(tmp_path):
    plain, *_ = train(tmp_path / "a", what=LayerNorm(at=LAST), reuse="never")
    reused, _, after, _ = train(tmp_path / "b", what=LayerNorm(at=LAST), reuse="memory")
    close(reused, plain)
    assert set(after.values()) == {3 + 3}


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_side_network_reads_what_every_block_computed(tmp_path, family):
    plain, *_ = train(tmp_path / "a", family, what=interfaces.SideSum(), reuse="never")
    reused, facts, after, text = train(
        tmp_path / "b", family, what=interfaces.SideSum(), reuse="disk"
    )
    close(reused, plain)
    assert facts["skipped"] * 3 == facts["passes"] * 2
    assert "and the first 2 of 2 blocks of the decoder" in text or family == "llama"
    assert 3 + 3 in after.values()


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_checkpointed_blocks_above_are_recomputed_as_ever(tmp_path, family):
    ends = []
    for place in ("never", "memory"):
        model = base(family)
        model.activation_checkpointing_enable({"use_reentrant": False})
        ends.append(train(tmp_path / place, model=model, what=LoRA(at=TOP), reuse=place)[0])
    close(*ends)


def test_texts_with_a_common_opening(tmp_path):
    rows = tiny.examples(8, longest=6)
    opening = " ".join(map(str, range(3, 23)))
    for row in rows:
        row.fields["ids"] = f"{opening} {row.fields['ids']}"
    what = Houlsby(bottleneck=4, at=Where(("mlp", "attn"), layers=(-1,)))
    plain, *_ = train(tmp_path / "a", rows=rows, what=what, reuse="never")
    reused, facts, *_ = train(tmp_path / "b", rows=rows, what=what, reuse="memory")
    close(reused, plain)
    assert facts["skipped"] == 16


def test_steps_of_several_batches_and_of_so_many_tokens(tmp_path):
    size = {"batch_size": None, "tokens": 24, "accumulate": 2}
    plain, *_ = train(tmp_path / "a", reuse="never", **size)
    reused, facts, *_ = train(tmp_path / "b", reuse="memory", **size)
    close(reused, plain)
    assert facts["skipped"] == 20


# ------------------------------------------------------------------------------- killed


def killed(folder, monkeypatch, **options):
    """A run that is killed in the middle of its second epoch."""
    steps = []
    outputs = tiny.Recite.outputs

    def deadly(*args):
        steps.append(1)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return outputs(*args)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(tiny.Recite, "outputs", deadly)
        try:
            train(folder, checkpoint_every=1, **options)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path, monkeypatch, place):
    whole, *_ = train(tmp_path / "a", checkpoint_every=1, reuse=place)
    killed(tmp_path / "b", monkeypatch, reuse=place)
    resumed, facts, *_ = train(tmp_path / "b", checkpoint_every=1, reuse=place)
    close(resumed, whole)
    if place == "disk":
        assert resumed[0] == whole[0]
        assert tiny.same(resumed[2], whole[2])
        assert facts["skipped"] == facts["passes"], "all rows were on the disk"


def test_half_a_row_is_no_row_and_a_damaged_one_neither(tmp_path, monkeypatch):
    whole, *_ = train(tmp_path / "a", checkpoint_every=1, reuse="disk")

    killed(tmp_path / "b", monkeypatch, reuse="disk")
    path = tmp_path / "b" / reuse.name_of("decoder")
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data + data[-21:])
    resumed, facts, *_ = train(tmp_path / "b", checkpoint_every=1, reuse="disk")
    close(resumed, whole)
    assert 0 < facts["skipped"] < facts["passes"]


def test_what_another_base_computed_is_not_taken(tmp_path, monkeypatch):
    killed(tmp_path / "b", monkeypatch, reuse="disk")
    (tmp_path / "b" / "checkpoint.safetensors").unlink()
    other = base("llama")
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    plain, *_ = train(tmp_path / "a", model=other, reuse="never")
    reused, facts, *_ = train(tmp_path / "b", model=other, reuse="disk")
    close(reused, plain)
    assert facts["skipped"] == 20, "the rows were computed anew in the first epoch"


def test_rows_are_kept_by_what_is_in_them(tmp_path):
    rows = tiny.examples(5)
    _, facts, *_ = train(tmp_path, rows=[*rows, *rows], epochs=2, batch_size=5, reuse="memory")
    assert facts["passes"] == 20
    store = facts["bytes"]
    _, facts, *_ = train(tmp_path / "b", rows=rows, epochs=2, reuse="memory")
    assert facts["bytes"] == store


# ------------------------------------------------------------------------- asked for, or not


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": LoRA()}, "a piece acts on the first block or before it"),
        ({"what": Prompt(length=2)}, "a piece acts on the first block or before it"),
        ({"base_lr": 1e-4}, "the base itself is trained; leave base_lr out"),
        ({"family": "bert", "dropout": True}, "random numbers in training mode; use dropout=False"),
    ],
)
def test_what_cannot_be_reused_is_refused_before_the_start(tmp_path, options, message):
    for place in ("memory", "disk"):
        with pytest.raises(TrainingError, match=f"nothing can be reused: .*{message}"):
            train(tmp_path / place, reuse=place, **options)
    assert not list(tmp_path.rglob("*"))


def test_a_folder_is_needed_on_disk():
    model, handle = tiny.attached(TopLayers(layers=1))
    with pytest.raises(TrainingError, match="no folder for what reuse='disk' keeps"):
        fit(model, handle, tiny.task(model), tiny.examples(4), reuse="disk", console=tiny.quiet())


def test_too_much_is_refused_with_its_size_and_the_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(reuse, "free_memory", lambda: 2000)
    tokens = sum(len(row.fields["ids"].split()) for row in tiny.examples(10))
    size = f"{tokens * 32 * 8 / 1000:.1f} kB"
    with pytest.raises(TrainingError, match=f"about {size} .* 2.0 kB of memory .*reuse='disk'"):
        train(tmp_path, reuse="memory")


def test_nothing_is_kept_below_two_epochs(tmp_path):
    _, facts, _, text = train(tmp_path, epochs=1, reuse="memory")
    assert facts is None
    assert "fewer than two epochs" in text


def test_it_begins_by_itself_where_it_pays_and_there_is_room(tmp_path, monkeypatch):
    assert train(tmp_path / "a")[1] is None, "a small run is not worth a line in its log"
    monkeypatch.setattr(reuse, "WORTH", 1e5)
    assert train(tmp_path / "b")[1]["skipped"] == 20
    assert train(tmp_path / "c", what=LoRA())[1] is None
    _, facts, _, text = train(tmp_path / "d", "bert", dropout=True)
    assert facts is None
    assert "dropout=False would let it" in text
    monkeypatch.setattr(reuse, "ROOM", 0)
    _, facts, _, text = train(tmp_path / "e")
    assert facts is None
    assert "reuse: nothing is kept, because about" in text


# ------------------------------------------------------------------------------- the stores


def test_a_full_store_keeps_what_it_has(tmp_path):
    states = torch.randn(3, 4)
    for store in (
        kept.MemoryStore(60),
        kept.DiskStore(tmp_path / "x.bin", {}, 4, torch.float32, 200),
    ):
        for key in (b"a" * 16, b"b" * 16, b"c" * 16):
            store.put(key, states)
        assert torch.equal(store.get(b"a" * 16), states)
        assert store.get(b"c" * 16) is None
        assert store.size <= store.limit
        store.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_file_is_read_again_in_its_type(tmp_path, dtype):
    path = tmp_path / "x.bin"
    states = torch.randn(3, 4).to(dtype)
    for _ in range(2):
        store = kept.DiskStore(path, {"base": "b"}, 4, dtype, 2000)
        store.put(b"a" * 16, states)
        assert torch.equal(store.get(b"a" * 16), states)
        store.close()
    other = kept.DiskStore(path, {"base": "c"}, 4, dtype, 2000)
    assert other.get(b"a" * 16) is None
    other.close()
