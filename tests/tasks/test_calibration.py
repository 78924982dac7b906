"""The temperature and the expected calibration error, against values by hand."""

import math

import pytest
import torch

from inlay.tasks import BinaryCrossEntropy, Classify, TrainedHead
from inlay.tasks.calibration import calibration_error, fit_temperature
from inlay.tasks.outputs import BinaryScores


def drawn(rows=4000, classes=3, temperature=2.5):
    """Scores that are too large by a factor, and classes drawn from what they should say."""
    draw = torch.Generator().manual_seed(0)
    right = torch.randn(rows, classes, generator=draw) * 2
    labels = torch.multinomial(right.softmax(1), 1, generator=draw).squeeze(1)
    return right * temperature, labels


def test_the_temperature_that_was_hidden_is_found():
    scores, labels = drawn()
    fitted = fit_temperature(scores, labels)
    assert fitted.temperature == pytest.approx(2.5, rel=0.06)
    assert fitted.error_after < 0.02 < fitted.error_before
    assert fitted.rows == 4000


def test_the_loss_is_lowest_there():
    scores, labels = drawn(rows=300)
    best = fit_temperature(scores, labels).temperature
    loss = torch.nn.functional.cross_entropy
    at = {t: float(loss(scores.double() / t, labels)) for t in (best, best * 1.01, best / 1.01)}
    assert min(at, key=at.get) == best


def test_the_expected_calibration_error_by_hand():
    # two rows at 0.9, one right: |0.9 - 0.5|; two at 0.6, both right: |0.6 - 1|
    shares = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    assert calibration_error(shares, torch.tensor([0, 1, 0, 1])) == pytest.approx(0.4)
    assert calibration_error(torch.eye(2), torch.tensor([0, 1])) == 0


def test_scores_that_cannot_be_are_left_out():
    scores, labels = drawn(rows=50, classes=2)
    padded = torch.nn.functional.pad(scores, (0, 1), value=-math.inf)
    assert fit_temperature(padded, labels).temperature == pytest.approx(
        fit_temperature(scores, labels).temperature
    )
    assert fit_temperature(scores[:0], labels[:0]) is None


def test_any_number_of_labels_are_choices_between_no_and_yes():
    task = Classify(by=TrainedHead(labels=("a", "b")), objective=BinaryCrossEntropy())
    outputs = BinaryScores(torch.tensor([[3.0, -1.0]]))
    scores, classes = task.objective.classes(outputs, torch.tensor([[1.0, 0.0]]))
    assert classes.tolist() == [1, 0]
    assert torch.allclose(scores.softmax(1)[:, 1], torch.tensor([3.0, -1.0]).sigmoid())
