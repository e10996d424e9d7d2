"""What the user trains: the Task type, target strings and the model zoo."""

from autopar.tasks.resolve import resolve
from autopar.tasks.task import Task
from autopar.tasks.zoo import ZOO, small_target, zoo_names

__all__ = ["ZOO", "Task", "resolve", "small_target", "zoo_names"]
