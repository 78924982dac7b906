"""Training: `fit`, and recipes that describe a whole run."""

from inlay.training.callback import InlayCallback
from inlay.training.fit import fit, tune
from inlay.training.fusion.recipe import FuseRecipe
from inlay.training.fusion.results import FuseResult
from inlay.training.fusion.run import train_fusion
from inlay.training.ipt_decoder import fit_decoder
from inlay.training.loop.evaluation import evaluate, predict
from inlay.training.loop.options import Options
from inlay.training.loop.results import Evaluation, Result
from inlay.training.multitask import Subtask, fit_multitask
from inlay.training.pet.patterns import Patterns
from inlay.training.pet.pet import pet
from inlay.training.pet.recipe import PetRecipe
from inlay.training.pet.results import PetResult
from inlay.training.preparation import prepare
from inlay.training.recipes.cross_validation import CrossValidation, cross_validate
from inlay.training.recipes.ensemble import EnsembleResult, vote
from inlay.training.recipes.outcome import Outcome
from inlay.training.recipes.recipe import Recipe
from inlay.training.recipes.run import run

__all__ = [
    "CrossValidation",
    "EnsembleResult",
    "Evaluation",
    "FuseRecipe",
    "FuseResult",
    "InlayCallback",
    "Options",
    "Outcome",
    "Patterns",
    "PetRecipe",
    "PetResult",
    "Recipe",
    "Result",
    "Subtask",
    "cross_validate",
    "evaluate",
    "fit",
    "fit_decoder",
    "fit_multitask",
    "pet",
    "predict",
    "prepare",
    "run",
    "train_fusion",
    "tune",
    "vote",
]
