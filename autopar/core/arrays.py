"""Different values of an array, without ``numpy.unique``.

That function loads ``numpy.ma`` when it is first called, 30 ms in the middle of a search that
takes 100, and its set-up costs more than sorting the few numbers of ours.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Number = TypeVar("Number", bound=np.generic)


def distinct(values: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """The different values of an array of any shape, rising; none may be NaN."""
    rising = np.sort(values, axis=None)
    first = np.ones(len(rising), dtype=bool)
    first[1:] = rising[1:] != rising[:-1]
    return rising[first]


def distinct_places(
    values: npt.NDArray[Number],
) -> tuple[npt.NDArray[Number], npt.NDArray[np.intp]]:
    """:func:`distinct` values, and the place of every entry among them, in the array's shape."""
    found = distinct(values)
    places: npt.NDArray[Any] = np.searchsorted(found, values)
    return found, places
