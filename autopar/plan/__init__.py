"""The Plan: how one training step is split over ranks; valid by construction."""

from autopar.plan.mesh import Mesh
from autopar.plan.plan import Plan, Stage, TaskRef

__all__ = ["Mesh", "Plan", "Stage", "TaskRef"]
