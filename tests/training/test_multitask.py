"""Several tasks at once, with inlays they share and inlays of their own."""

from __future__ import annotations

import pytest
import torch

import inlay
from inlay.errors import TrainingError
from inlay.tasks import Classify, Extract, Generate, Tag, Verbalizer
from inlay.training import Subtask, fit, fit_multitask
from inlay.training.multitask import Multitask, SubtaskExample
from tests import zoo
from tests.tasks.tiny import examples, loss_of, tokenizer

COLOURS = examples(
    *(
        {"text": f"the {word}", "label": label}
        for label, words in {"a": ("cat", "dog"), "b": ("film", "plot")}.items()
        for word in words
    )
)
TEXTS = examples({"source": "one", "target": "two"}, {"source": "three", "target": "four"})


def setting():
    model = zoo.fresh("llama")
    words = tokenizer("decoder")
    torch.manual_seed(0)
    names = ("shared", "own-a", "own-b")
    shared, a, b = (inlay.attach(model, inlay.Prompt(length=3), name=name) for name in names)
    judge = Classify(template="{text} was", by=Verbalizer({"a": "good", "b": "bad"}))
    write = Generate(generation={"max_new_tokens": 2}, metric="exact_match")
    for task in (judge, write):
        task.bind(model, words)
    return model, shared, [Subtask(judge, COLOURS, (shared, a), COLOURS),
                           Subtask(write, TEXTS, (shared, b), TEXTS)]  # fmt: skip


def losses(model, subtasks):
    losses = []
    with torch.no_grad():
        for subtask in subtasks:
            with inlay.rows(model, [[handle.name for handle in subtask.inlays]]):
                batch = subtask.task.collate(subtask.task.encode_all(subtask.data))
                losses.append(loss_of(subtask.task, model, batch)[0].item())
    return losses


def test_every_subtask_learns_with_what_is_shared_and_what_is_its_own():
    model, _, subtasks = setting()
    before = {h.name: [p.clone() for p in h.parameters()] for h in subtasks[0].inlays}
    start = losses(model, subtasks)
    result = fit_multitask(model, subtasks, steps=30, batch_size=6, lr=0.1, seed=1)
    assert result.steps == 30
    assert set(result.best.scores) == {"0/accuracy", "1/exact_match", "mean"}
    for old, new in zip(start, losses(model, subtasks), strict=True):
        assert new < 0.7 * old
    for handle in subtasks[0].inlays:
        assert not torch.equal(before[handle.name][0], next(iter(handle.parameters())))


def test_the_gradient_of_a_multitask_is_the_sum_over_its_subtasks():
    model, shared, subtasks = setting()
    (p,) = shared.parameters()
    apart = torch.zeros_like(p)
    for subtask in subtasks:
        with inlay.rows(model, [[handle.name for handle in subtask.inlays]]):
            batch = subtask.task.collate(subtask.task.encode_all(subtask.data))
            loss, _ = loss_of(subtask.task, model, batch)
        apart += torch.autograd.grad(loss, p)[0]
    multitask = Multitask(subtasks=tuple(subtasks))
    rows = multitask.encode_all(
        [
            SubtaskExample(e.fields, e.where, n)
            for n, handle in enumerate(subtasks)
            for e in handle.data
        ]
    )
    total, count = loss_of(multitask, model, multitask.collate(rows[::-1]))
    assert count == sum(len(row.labels) for row in rows)
    torch.testing.assert_close(torch.autograd.grad(total, p)[0], apart, rtol=1e-4, atol=1e-5)


def test_one_task_goes_on_alone_and_the_shared_part_holds_still():
    model, shared, subtasks = setting()
    fit_multitask(model, subtasks, steps=3, batch_size=6, lr=0.1)
    (p,) = shared.parameters()
    held = p.clone()
    subtask, before = subtasks[0], losses(model, subtasks)[0]
    with inlay.rows(model, [["shared", "own-a"]]):
        fit(model, subtask.inlays[1], subtask.task, subtask.data, steps=40, lr=0.1, batch_size=4)
    assert losses(model, subtasks)[0] < 0.95 * before
    assert torch.equal(held, p)


def test_a_multitask_resumes_to_the_same_numbers(tmp_path):
    model, shared, subtasks = setting()
    options = {"steps": 6, "batch_size": 3, "lr": 0.1, "checkpoint_every": 3}
    fit_multitask(model, subtasks, folder=tmp_path / "a", **options)
    whole = [p.clone() for p in shared.parameters()]
    model, shared, subtasks = setting()
    fit_multitask(model, subtasks, folder=tmp_path / "a", **options)  # goes on where that one ended
    for parameter, expected in zip(shared.parameters(), whole, strict=True):
        assert torch.equal(parameter, expected)


def test_what_is_not_attached_is_refused():
    model, shared, subtasks = setting()
    with pytest.raises(TrainingError, match="at least one"):
        fit_multitask(model, [], steps=1)
    shared.detach()
    with pytest.raises(TrainingError, match="shared"):
        fit_multitask(model, subtasks, steps=1)


ASKED = examples(
    *(
        {
            "question": "cat",
            "context": f"{'the film was ' * 5}{word}",
            "answers": [{"text": word, "start": 65}],
        }
        for word in ("good", "bad")
    ),
    {"question": "dog", "context": "dull", "answers": []},
)
TAGGED = examples(
    {"tokens": ["the", "cat"], "tags": ["O", "B-a"]}, {"tokens": ["a", "dog"], "tags": ["O", "O"]}
)


def test_words_and_windows_are_subtasks_too():
    model = zoo.fresh("bert")
    tag, extract = Tag(labels=("B-a", "O")), Extract(max_length=14, stride=4)
    subtasks = []
    for task, data in ((tag, TAGGED), (extract, ASKED)):
        task.bind(model, tokenizer("encoder"))
        handle = inlay.attach(model, inlay.LoRA(rank=4) + task.head(), name=task.name)
        subtasks.append(Subtask(task, data, (handle,), data))
    result = fit_multitask(model, subtasks, steps=60, batch_size=16, lr=2e-2, seed=1)
    assert result.best.scores["0/f1"] == result.best.scores["1/f1"] == 1
    both = [
        *(SubtaskExample(example.fields, example.where, 1) for example in ASKED[:2]),
        *(SubtaskExample(example.fields, example.where, 0) for example in TAGGED),
        SubtaskExample(ASKED[2].fields, "last", 1),
    ]
    multitask = Multitask(subtasks=tuple(subtasks))
    rows = multitask.encode_all(both)
    assert [row.index for row in rows] == [0, 0, 1, 1, 2, 3, 4]
    predictions = multitask.predict(model, multitask.collate(rows))
    answers = multitask.merge_windows(rows, predictions, both)
    assert answers == ["good", "bad", ["O", "B-a"], ["O", "O"], ""]
