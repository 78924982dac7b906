"""Other loops than ours: `transformers.Trainer` as it is, and twenty lines of plain PyTorch."""

import copy
import pickle
import re

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

import inlay
from inlay import LoRA, Prefix, Prompt
from inlay.errors import TrainingError
from inlay.runtime import stack_inputs
from tests.training import tiny
from tests.training.methods import Compared, Pruned

SPECS = [LoRA(rank=2, dropout=0.1), LoRA(rank=2) + Prefix(length=2, mlp=5) + Prompt(length=2)]


def collate(rows):
    ids = pad_sequence([row["input_ids"] for row in rows], batch_first=True)
    mask = (ids != 0).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def rows(count=24):
    texts = [str(example.fields["ids"]) for example in tiny.examples(count)]
    return [{"input_ids": torch.tensor([int(word) for word in text.split()])} for text in texts]


def start(spec):
    """A base with an inlay, and the base's numbers as they are."""
    model, handle = tiny.attached(spec)
    return model, handle, base_of(model)


def base_of(model):
    named = model.named_parameters()
    return {name: p.detach().clone() for name, p in named if not name.startswith("inlays.")}


def trainer(model, folder, *, optimizer=None, callbacks=(), train=None, **options):
    options = {
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "save_steps": 2,
        "learning_rate": 1e-2,
        "seed": 3,
        **options,
    }
    args = hf.TrainingArguments(
        str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        eval_strategy="steps",
        eval_steps=2,
        **options,
    )
    return hf.Trainer(
        model,
        args,
        data_collator=collate,
        train_dataset=rows() if train is None else train,
        eval_dataset=rows(6),
        optimizers=(optimizer, None),
        callbacks=[*callbacks],
    )


@pytest.mark.parametrize("spec", SPECS)
def test_trainer_changes_the_pieces_and_nothing_else(tmp_path, spec):
    model, handle, base = start(spec)
    before = tiny.state(handle)
    trainer(model, tmp_path).train()
    assert tiny.same(base, base_of(model))
    after = tiny.state(handle)
    assert all(not torch.equal(after[name], before[name]) for name in before)
    handle.save(tmp_path / "one.safetensors")
    loaded = tiny.base()
    inlay.load(loaded, tmp_path / "one.safetensors")
    batch = collate(rows(3))
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model.eval()(**batch).logits)


def test_trainer_runs_an_opening_that_its_collator_notes_once(tmp_path, monkeypatch):
    """As on an accelerator, where nothing is looked at in a pass."""
    monkeypatch.setattr(stack_inputs, "HOST", "no CPU")
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(1, 15, (12, 14), generator=generator)
    texts[:, :10] = torch.arange(1, 11)
    results = []
    for noted in (False, True):
        model, handle, _ = start(LoRA(rank=2))
        shapes = []
        model.model.layers[0].register_forward_pre_hook(
            lambda module, args, shapes=shapes: shapes.append(tuple(args[0].shape[:2]))
        )
        loop = trainer(model, tmp_path, max_steps=2, train=[{"input_ids": row} for row in texts])
        if noted:
            loop.data_collator = lambda rows: inlay.note_opening(collate(rows))
        loop.train()
        assert shapes[:2] == ([(1, 10), (4, 4)] if noted else [(4, 14), (4, 14)])
        results.append(tiny.state(handle))
    plain, once = results
    for name in plain:
        torch.testing.assert_close(once[name], plain[name], rtol=1e-3, atol=1e-4)


def test_trainer_clips_the_gradient_of_the_pieces(tmp_path):
    moved = []
    for limit in (1e-3, 1e3):
        model, handle, _ = start(LoRA(rank=2))
        before = tiny.state(handle)
        plain = torch.optim.SGD(handle.parameters(), lr=1.0)
        options = {"max_steps": 1, "max_grad_norm": limit, "lr_scheduler_type": "constant"}
        trainer(model, tmp_path, optimizer=plain, **options).train()
        steps = [(t - before[name]).flatten() for name, t in tiny.state(handle).items()]
        moved.append(float(torch.cat(steps).norm()))
    assert moved[0] == pytest.approx(1e-3, rel=1e-2)
    assert moved[1] > 0.1


@pytest.mark.parametrize("spec", SPECS)
def test_trainer_goes_on_from_its_checkpoint_to_the_same_numbers(tmp_path, spec):
    model, whole, _ = start(spec)
    trainer(model, tmp_path).train()
    second_model, handle, base = start(spec)
    with torch.no_grad():
        for parameter in handle.parameters():
            parameter += 1.0
    second = trainer(second_model, tmp_path)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert tiny.same(tiny.state(handle), tiny.state(whole))
    assert tiny.same(base, base_of(second_model))


def test_trainer_brings_the_best_pieces_back(tmp_path):
    model, handle, base = start(LoRA(rank=2))
    first = {"metric_for_best_model": "loss", "greater_is_better": True}  # it falls from there
    loop = trainer(model, tmp_path, load_best_model_at_end=True, **first)
    loop.train()
    best = loop.state.best_model_checkpoint
    assert best.endswith("checkpoint-2")
    saved = load_file(f"{best}/model.safetensors")
    last = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    for name, tensor in model.state_dict().items():
        if name in saved:  # tied weights stand there once
            assert torch.equal(tensor, saved[name]), name
        if name.startswith("inlays."):
            assert not torch.equal(tensor, last[name]), name
    assert {name for name in saved if name.startswith("inlays.")} == {
        name for name in model.state_dict() if name.startswith("inlays.")
    }
    assert tiny.same(base, base_of(model))
    assert handle.attached


@pytest.mark.parametrize("spec", [LoRA(rank=2), *SPECS[1:]])
def test_gradient_checkpointing_gives_the_same_numbers(tmp_path, spec):
    ends = []
    for checkpointing in (False, True):
        model, handle, base = start(spec)
        trainer(model, tmp_path, activation_checkpointing=checkpointing).train()
        assert model.is_activation_checkpointing == checkpointing
        assert tiny.same(base, base_of(model))
        ends.append(tiny.state(handle))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("everything", [False, True])
def test_a_plain_loop(everything):
    """Given all parameters or those of the pieces, an optimiser changes the pieces alone."""
    model, handle, base = start(LoRA(rank=4, at=("attn.q", "attn.v", "mlp.down")))
    parameters = model.parameters() if everything else handle.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=2e-2, weight_decay=0.1)
    batch = collate(rows(16))
    model.train()
    losses = []
    for _ in range(20):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert tiny.same(base, base_of(model))
    assert {id(p) for p in model.parameters() if p.requires_grad} == set(
        map(id, handle.parameters())
    )


def test_copies_train_apart():
    model, handle, _ = start(LoRA(rank=2))
    before = tiny.state(handle)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied = inlay.attached(other)["default"]
        optimizer = torch.optim.SGD(copied.parameters(), lr=1.0)
        other(**collate(rows(4))).loss.backward()
        optimizer.step()
        assert not tiny.same(tiny.state(copied), before)
        assert tiny.same(tiny.state(handle), before)


def test_save_pretrained_writes_base_and_pieces(tmp_path):
    """What ADR 0005 says about it: an ordinary model folder with more tensors than the base has."""
    model, handle, base = start(LoRA(rank=2) + Prefix(length=2, mlp=None))
    with torch.no_grad():
        for parameter in handle.parameters():
            parameter += torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    pieces = {name for name in stored if name.startswith("inlays.")}
    assert len(pieces) == len(handle.training_state()) == 12
    assert {name for name in stored if name not in pieces} == {*base}

    loaded, report = hf.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert {*report["unexpected_keys"]} == pieces
    assert not report["missing_keys"]
    assert tiny.same(base, base_of(loaded)), "the base alone, as it was"
    assert not inlay.attached(loaded)

    second = inlay.attach(loaded, handle.spec)
    problems = loaded.load_state_dict(stored, strict=False)
    assert not problems.unexpected_keys
    assert tiny.same(tiny.state(second), tiny.state(handle)), "attached first, the pieces fit"

    handle.detach()
    model.save_pretrained(tmp_path / "bare")
    assert {*load_file(tmp_path / "bare" / "model.safetensors")} == {*base}


# -------------------------------------------------------------- methods that ask for more

SCHEDULED = Pruned(noise=0.0, weight=0.3) + LoRA(rank=2)


@pytest.mark.parametrize("limit", [1e9, 0.1])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 1), (2, 4)])
def test_trainer_with_a_callback_is_as_fit(tmp_path, batch_size, accumulate, limit):
    model, fitted, _ = start(SCHEDULED)
    task, data = tiny.task(model), tiny.examples(8)
    size = {"batch_size": batch_size, "accumulate": accumulate, "steps": 6, "clip": limit}
    constant = {"lr": 1e-2, "schedule": "constant", "warmup": 0.0, "console": tiny.quiet()}
    inlay.fit(model, fitted, task, data, **size, **constant)
    model, trained, base = start(SCHEDULED)
    options = {"per_device_train_batch_size": batch_size, "max_grad_norm": limit}
    options |= {"gradient_accumulation_steps": accumulate, "lr_scheduler_type": "constant"}
    callback = inlay.InlayCallback(trained)
    trainer(model, tmp_path, callbacks=[callback], train=rows(8), **options).train()
    assert tiny.same(base, base_of(model))
    masks = 0
    for name, tensor in tiny.state(trained).items():
        torch.testing.assert_close(tensor, tiny.state(fitted)[name], rtol=1e-3, atol=1e-5)
        masks += name.endswith("mask") and not tensor.all()
        if name.endswith("progress"):
            assert float(tensor) == 1.0
    assert masks == 4


def test_trainer_goes_on_with_a_schedule(tmp_path):
    model, whole, _ = start(SCHEDULED)
    trainer(model, tmp_path, callbacks=[inlay.InlayCallback(whole)]).train()
    second_model, handle, _ = start(SCHEDULED)
    second = trainer(second_model, tmp_path, callbacks=[inlay.InlayCallback(handle)])
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert tiny.same(tiny.state(handle), tiny.state(whole))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_trainer_without_the_callback_is_noticed(tmp_path, accumulate):
    model, _, _ = start(SCHEDULED)
    loop = trainer(model, tmp_path, gradient_accumulation_steps=accumulate)
    with pytest.raises(TrainingError, match=r"has a penalty, .* an inlay.InlayCallback"):
        loop.train()
    assert loop.state.global_step == 2


def plain(model, handle, *, steps=4, accumulate=1, penalty=True, after_step=True, mode=True):
    """A loop of one's own, with an evaluation after every step. mode: of the model in training."""
    optimizer = torch.optim.AdamW(handle.parameters(), lr=1e-2)
    for step in range(steps):
        model.train(mode)
        for _ in range(accumulate):
            (model(**collate(rows(4))).loss / accumulate).backward()
        if penalty:
            handle.penalty().backward()
        optimizer.step()
        if after_step:
            handle.after_step((step + 1) / steps)
        optimizer.zero_grad()
        model.eval()
        model(**collate(rows(4)))
        with torch.no_grad():
            model(**collate(rows(4)))


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_plain_loop_that_does_it_is_let_alone(accumulate, mode):
    model, handle, _ = start(SCHEDULED)
    plain(model, handle, accumulate=accumulate, mode=mode)
    task, data = tiny.task(model), tiny.examples(8)
    for _ in range(2):  # and so is `fit`, before and after other loops
        inlay.fit(model, handle, task, data, steps=3, accumulate=2, console=tiny.quiet())
        plain(model, handle, accumulate=accumulate)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    ("left_out", "cure"),
    [("penalty", "add handle.penalty()"), ("after_step", "call handle.after_step(progress)")],
)
def test_a_plain_loop_that_leaves_something_out_is_refused(left_out, cure, accumulate, mode):
    options = {"accumulate": accumulate, "mode": mode, left_out: False}
    model, handle, _ = start(SCHEDULED)
    with pytest.raises(TrainingError, match=re.escape(cure)):
        plain(model, handle, **options)
    model, handle, _ = start(SCHEDULED)
    plain(model, handle, steps=1, **options)  # one is let pass


def test_what_the_callback_cannot_do_is_refused():
    _, handle, _ = start(Compared())
    with pytest.raises(TrainingError, match="several passes .* train it with inlay.fit"):
        inlay.InlayCallback(handle)
    _, handle, _ = start(LoRA(rank=2))
    handle.detach()
    with pytest.raises(TrainingError, match="is not attached"):
        inlay.InlayCallback(handle)


def test_a_copy_is_watched_by_itself():
    model, handle, _ = start(SCHEDULED)
    plain(model, handle, steps=1)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied = inlay.attached(other)["default"]
        plain(other, copied)
        with pytest.raises(TrainingError, match="has a penalty"):
            plain(other, copied, penalty=False)
    plain(model, handle)


def test_an_inlay_that_is_not_trained_asks_for_nothing():
    model, still, _ = start(SCHEDULED)
    _, handle = tiny.attached(LoRA(rank=2), model=model, name="other")
    optimizer = torch.optim.AdamW(handle.parameters(), lr=1e-2)
    model.train()
    for _ in range(4):
        model(**collate(rows(4))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert still.penalty() is not None


# -------------------------------------------------------------- the inlay alone in checkpoints


def sizes(folder):
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_a_checkpoint_holds_the_inlay_and_not_the_base(tmp_path):
    whole_model, whole, _ = start(LoRA(rank=2))
    trainer(whole_model, tmp_path / "whole").train()
    model, handle, base = start(LoRA(rank=2))
    trainer(model, tmp_path / "alone", callbacks=[inlay.InlayCallback(handle)]).train()
    assert tiny.same(tiny.state(handle), tiny.state(whole)), "what is saved changes no number"

    before, after = (sizes(tmp_path / name / "checkpoint-6") for name in ("whole", "alone"))
    pieces = sum(t.numel() * t.element_size() for t in handle.training_state().values())
    saved = sum(t.numel() * t.element_size() for t in base.values())
    assert before["model.safetensors"] > saved + pieces
    assert pieces < after["model.safetensors"] < pieces + 2000, "tensors and a header"
    assert not before.keys() - after.keys()
    assert after.keys() - before.keys() == {"default.safetensors"}
    assert after["optimizer.pt"] == before["optimizer.pt"]

    loaded = tiny.base()
    for step, name in ((2, "first"), (6, "last")):
        path = tmp_path / "alone" / f"checkpoint-{step}" / "default.safetensors"
        inlay.load(loaded, path, name=name)
    state = inlay.attached(loaded)["last"].named_tensors()
    assert tiny.same(state, handle.named_tensors())
    assert not tiny.same(state, inlay.attached(loaded)["first"].named_tensors())
    alone = tmp_path / "alone" / "checkpoint-6"
    _, report = hf.LlamaForCausalLM.from_pretrained(alone, output_loading_info=True)
    assert report["missing_keys"], "taken for a whole model, it says what it lacks"

    model.save_pretrained(tmp_path / "later")
    assert base.keys() < load_file(tmp_path / "later" / "model.safetensors").keys()


@pytest.mark.parametrize("spec", SPECS)
def test_trainer_goes_on_from_a_checkpoint_of_the_inlay_alone(tmp_path, spec):
    model, whole, _ = start(spec)
    trainer(model, tmp_path, callbacks=[inlay.InlayCallback(whole)]).train()
    second_model, handle, base = start(spec)
    with torch.no_grad():
        for parameter in handle.parameters():
            parameter += 1.0
    second = trainer(second_model, tmp_path, callbacks=[inlay.InlayCallback(handle)])
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert tiny.same(tiny.state(handle), tiny.state(whole))
    assert tiny.same(base, base_of(second_model))


def test_the_best_checkpoint_of_the_inlay_alone_is_brought_back(tmp_path):
    model, handle, base = start(LoRA(rank=2))
    first = {"metric_for_best_model": "loss", "greater_is_better": True}  # it falls from there
    callback = inlay.InlayCallback(handle)
    trainer(
        model,
        tmp_path,
        callbacks=[callback],
        load_best_model_at_end=True,
        save_total_limit=1,
        **first,
    ).train()
    best = tiny.base()
    inlay.load(best, tmp_path / "checkpoint-2" / "default.safetensors")
    state = inlay.attached(best)["default"].named_tensors()
    assert tiny.same(state, handle.named_tensors())
    assert tiny.same(base, base_of(model))


def test_parts_of_the_base_that_are_trained_are_in_the_checkpoint(tmp_path):
    model, handle, base = start(LoRA(rank=2))
    norm = model.model.norm.weight
    norm.requires_grad_(True)
    trainer(model, tmp_path, callbacks=[inlay.InlayCallback(handle)]).train()
    stored = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert {n for n in stored if not n.startswith("inlays.")} == {"model.norm.weight"}
    assert torch.equal(stored["model.norm.weight"], norm)
    assert not torch.equal(norm, base["model.norm.weight"])


def test_several_inlays_and_the_whole_base_where_that_is_wanted(tmp_path):
    model, one, base = start(LoRA(rank=2))
    _, two = tiny.attached(LoRA(rank=1, at="mlp.up"), model=model, name="two")
    callbacks = [inlay.InlayCallback(one), inlay.InlayCallback(two)]
    trainer(model, tmp_path / "both", callbacks=callbacks).train()
    names = sizes(tmp_path / "both" / "checkpoint-6")
    assert {"default.safetensors", "two.safetensors"} < names.keys()
    trainer(model, tmp_path / "whole", callbacks=[inlay.InlayCallback(one, save_base=True)]).train()
    stored = load_file(tmp_path / "whole" / "checkpoint-6" / "model.safetensors")
    assert base.keys() < stored.keys()
    assert {"config.json", "default.safetensors"} < sizes(
        tmp_path / "whole" / "checkpoint-6"
    ).keys()


def test_a_training_that_breaks_off_leaves_the_model_as_it_was(tmp_path):
    model, handle, base = start(LoRA(rank=2))

    class Broken(hf.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise ZeroDivisionError

    loop = trainer(model, tmp_path, callbacks=[inlay.InlayCallback(handle), Broken()])
    with pytest.raises(ZeroDivisionError):
        loop.train()
    model.save_pretrained(tmp_path / "later")
    assert base.keys() < load_file(tmp_path / "later" / "model.safetensors").keys()
