"""A quantity that is affine in the number of samples: ``fixed + per_sample * n``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Amount:
    """FLOPs or bytes as a function of the microbatch size.

    An op whose output depends on the batch scales with it; an op on weights and constants alone
    (a causal mask, a position table) does not. The unit is the holder's.
    """

    fixed: float = 0.0
    per_sample: float = 0.0

    @overload
    def at(self, samples: float) -> float: ...

    @overload
    def at(self, samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]: ...

    def at(self, samples: float | npt.NDArray[np.float64]) -> float | npt.NDArray[np.float64]:
        """The value for a microbatch of ``samples``, or those for several."""
        return self.fixed + self.per_sample * samples

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.fixed + other.fixed, self.per_sample + other.per_sample)

    @classmethod
    def total(cls, amounts: list[Amount]) -> Amount:
        """Sum of several amounts."""
        return cls(sum(a.fixed for a in amounts), sum(a.per_sample for a in amounts))

    def to_list(self) -> list[float]:
        """JSON form ``[fixed, per_sample]``."""
        return [self.fixed, self.per_sample]

    @classmethod
    def from_list(cls, data: list[float]) -> Amount:
        """Inverse of :meth:`to_list`."""
        fixed, per_sample = data
        return cls(float(fixed), float(per_sample))


ZERO = Amount()
