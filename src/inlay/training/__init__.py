"""Training: `fit`, and recipes that say what to fit."""

from inlay.training.cross_validation import Validated, cross_validate
from inlay.training.ensemble import Voted, vote
from inlay.training.entry import fit, tune
from inlay.training.evaluation import evaluate, predict
from inlay.training.intrinsic import fit_decoder
from inlay.training.mixture import Lesson, fit_mixture
from inlay.training.options import Options
from inlay.training.patterns import Patterns
from inlay.training.pet import pet
from inlay.training.pet_recipe import Pet
from inlay.training.pet_results import Petted
from inlay.training.recipe import Recipe
from inlay.training.results import Evaluation, Result
from inlay.training.run import Outcome, run

__all__ = [
    "Evaluation",
    "Lesson",
    "Options",
    "Outcome",
    "Patterns",
    "Pet",
    "Petted",
    "Recipe",
    "Result",
    "Validated",
    "Voted",
    "cross_validate",
    "evaluate",
    "fit",
    "fit_decoder",
    "fit_mixture",
    "pet",
    "predict",
    "run",
    "tune",
    "vote",
]
