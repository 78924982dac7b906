"""Predictions for new rows, from an inlay's file alone."""

from inlay.predicting.file import FileResult, predict_file
from inlay.predicting.opening import open_inlay, read_usage, task_of
from inlay.predicting.predictor import Predictor

__all__ = ["FileResult", "Predictor", "open_inlay", "predict_file", "read_usage", "task_of"]
