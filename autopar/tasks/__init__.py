"""What the user trains: the Task type, target strings and the model zoo."""

from autopar.tasks.task import Task

__all__ = ["Task"]
