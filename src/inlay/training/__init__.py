"""Training: `fit`, and what a recipe makes of it."""

from inlay.training.entry import fit
from inlay.training.evaluation import evaluate, predict
from inlay.training.options import Options
from inlay.training.results import Evaluation, Result

__all__ = ["Evaluation", "Options", "Result", "evaluate", "fit", "predict"]
