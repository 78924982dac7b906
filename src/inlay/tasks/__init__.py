"""What can be taught: one file for each task."""

from inlay.tasks.base import TASKS, Prediction, Task
from inlay.tasks.batch import Batch
from inlay.tasks.choose import Choose
from inlay.tasks.classify import Classify
from inlay.tasks.extract import Extract
from inlay.tasks.generate import Generate
from inlay.tasks.loss import token_loss
from inlay.tasks.objectives import BinaryCrossEntropy, CrossEntropy, Distillation
from inlay.tasks.outputs import Outputs
from inlay.tasks.regress import Regress
from inlay.tasks.rows import Row
from inlay.tasks.tag import Tag
from inlay.tasks.trained_head import TrainedHead
from inlay.tasks.verbalizer import Verbalizer

from_spec = Task.from_spec

__all__ = [
    "TASKS",
    "Batch",
    "BinaryCrossEntropy",
    "Choose",
    "Classify",
    "CrossEntropy",
    "Distillation",
    "Extract",
    "Generate",
    "Outputs",
    "Prediction",
    "Regress",
    "Row",
    "Tag",
    "Task",
    "TrainedHead",
    "Verbalizer",
    "from_spec",
    "token_loss",
]
