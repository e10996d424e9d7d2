"""Different values of arrays are those that numpy finds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from autopar.core.arrays import distinct, distinct_places


@given(arrays.arrays(np.int64, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0)))
def test_as_numpy(values: np.ndarray) -> None:
    expected, places = np.unique(values, return_inverse=True)
    assert distinct(values).tolist() == expected.tolist()
    found, inverse = distinct_places(values)
    assert found.tolist() == expected.tolist()
    assert np.array_equal(inverse, places.reshape(values.shape))


@given(st.lists(st.floats(allow_nan=False)))
def test_entries_are_found_again(values: list[float]) -> None:
    found, places = distinct_places(np.array(values))
    assert found[places].tolist() == values
