"""GradientNoise: how large a batch is worth its samples, as measured on the task."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from autopar.core.estimate import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisePoint:
    """The noise at one point of training.

    Attributes:
        step: Optimizer steps done before.
        gradient_squared: Squared norm of the true gradient, without bias.
        noise_trace: Trace of the covariance of one sample's gradient.
        scale: ``noise_trace / gradient_squared`` in samples, two standard errors either way;
            ``None`` where the gradient is lost in the noise of the samples looked at.
    """

    step: int
    gradient_squared: float
    noise_trace: float
    scale: Estimate | None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NoisePoint:
        """Inverse of ``asdict``."""
        scale = Estimate.from_dict(data["scale"]) if data["scale"] else None
        return cls(**{**data, "scale": scale})


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientNoise:
    """The simple noise scale of McCandlish et al. 2018 (arXiv:1812.06162) along a short training.

    With a batch of the noise scale, training needs about twice the steps of a huge batch and
    twice the samples of a tiny one; far larger batches mostly waste samples.

    Attributes:
        small_batch: Samples of the smaller gradients.
        big_batch: Samples of the larger ones, which are means of smaller ones.
        repeats: Larger gradients at each point.
        train_batch: Samples of each training step between the points.
        points: In order of steps.
    """

    small_batch: int
    big_batch: int
    repeats: int
    train_batch: int
    points: tuple[NoisePoint, ...]

    @property
    def scale(self) -> Estimate | None:
        """The last point's, as noise grows while training; ``None`` if it has none."""
        return self.points[-1].scale if self.points else None

    @property
    def words(self) -> str:
        """The scale for people."""
        if self.scale is None:
            return f"the gradient is lost in the noise of {self.repeats * self.big_batch} samples"
        scale = self.scale
        after = self.points[-1].step
        return (
            f"{scale.value:.3g} samples ({scale.low:.3g} to {scale.high:.3g}) after {after} steps"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "points": [asdict(point) for point in self.points]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GradientNoise:
        """Inverse of :meth:`to_dict`."""
        points = tuple(NoisePoint.from_dict(point) for point in data["points"])
        return cls(**{**data, "points": points})
