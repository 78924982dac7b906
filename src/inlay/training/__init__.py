"""Training: `fit`, and recipes that say what to fit."""

from inlay.training.callback import InlayCallback
from inlay.training.fit import fit, tune
from inlay.training.ipt_decoder import fit_decoder
from inlay.training.loop.evaluation import evaluate, predict
from inlay.training.loop.options import Options
from inlay.training.loop.results import Evaluation, Result
from inlay.training.multitask import Lesson, fit_mixture
from inlay.training.pet.patterns import Patterns
from inlay.training.pet.pet import pet
from inlay.training.pet.recipe import Pet
from inlay.training.pet.results import Petted
from inlay.training.preparation import prepare
from inlay.training.recipes.cross_validation import Validated, cross_validate
from inlay.training.recipes.ensemble import Voted, vote
from inlay.training.recipes.recipe import Recipe
from inlay.training.recipes.run import Outcome, run

__all__ = [
    "Evaluation",
    "InlayCallback",
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
    "prepare",
    "run",
    "tune",
    "vote",
]
