"""What can be taught: one file per task."""

from inlay.tasks.base import TASKS, Batch, Prediction, Row, Task
from inlay.tasks.choose import Choose
from inlay.tasks.classify import Classify
from inlay.tasks.extract import Extract
from inlay.tasks.generate import Generate
from inlay.tasks.loss import token_loss
from inlay.tasks.regress import Regress
from inlay.tasks.tag import Tag

from_spec = Task.from_spec

__all__ = [
    "TASKS",
    "Batch",
    "Choose",
    "Classify",
    "Extract",
    "Generate",
    "Prediction",
    "Regress",
    "Row",
    "Tag",
    "Task",
    "from_spec",
    "token_loss",
]
