"""The Plan: how one training step is split over ranks; valid by construction."""

from autopar.plans.mesh import Mesh
from autopar.plans.plan import Plan, Stage, TaskRef

__all__ = ["Mesh", "Plan", "Stage", "TaskRef"]
