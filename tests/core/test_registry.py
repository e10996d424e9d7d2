"""Registries, estimates, errors."""

from __future__ import annotations

import pickle

import pytest

from autopar.core.errors import AutoparError, GateError, InputError
from autopar.core.estimate import Estimate, weakest
from autopar.core.registry import Entry, Registry


def test_unknown_name_suggests_the_closest() -> None:
    registry: Registry[object] = Registry("thing", {"gpipe": Entry("json:dumps", "a thing")})
    assert callable(registry.load("gpipe"))
    with pytest.raises(InputError) as caught:
        registry.load("gpip")
    assert "gpipe" in str(caught.value.hint)


def test_estimate_keeps_its_order() -> None:
    wide = Estimate.spread(3.0, relative=2.0, source="analytic")
    assert (wide.low, wide.high) == (1.0, 9.0)
    with pytest.raises(ValueError, match="low <= value"):
        Estimate(value=1, low=2, high=3, source="measured")
    assert weakest("measured", "assumed", "analytic") == "assumed"


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(GateError("no", hint="try")))
    assert isinstance(error, AutoparError)
    assert (error.message, error.hint, error.exit_code) == ("no", "try", 5)
