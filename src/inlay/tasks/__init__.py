"""What can be taught: one file per task."""

from inlay.tasks.base import TASKS, Batch, Prediction, Row, Task
from inlay.tasks.classify import Classify
from inlay.tasks.generate import Generate
from inlay.tasks.loss import token_loss

from_spec = Task.from_spec

__all__ = [
    "TASKS",
    "Batch",
    "Classify",
    "Generate",
    "Prediction",
    "Row",
    "Task",
    "from_spec",
    "token_loss",
]
