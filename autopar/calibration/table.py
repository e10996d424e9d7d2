"""Calibration: fitted factors of the constants, and what they were fitted on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from autopar.calibration.constants import SPECS, Constants
from autopar.calibration.kernels import OLDER_ATTENTION
from autopar.core.errors import InputError
from autopar.core.io import check_schema, read_json, write_document

SCHEMA = "autopar.calibration"
SCHEMA_VERSION = 1
SHIPPED = Path(__file__).with_name("shipped.json")
OWN_STACK = {"gather_exposed": "fsdp1"}
"""Constants that belong to the code that runs a plan -> the framework that shares this code with
autopar's executor: parameters are gathered by torch's FSDP. What all frameworks have in common
would hide next to nothing, as DeepSpeed's ZeRO-3 of 2021 did."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Factors by constant and by what they belong to.

    Attributes:
        factors: Constant -> key -> factor; keys are ``global``, ``architecture:NAME``,
            ``device:NAME``, ``framework:NAME`` and ``pair:FRAMEWORK@DEVICE``.
        fitted_on: What data they rest on: families, rows, date, scores.
    """

    factors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    fitted_on: Mapping[str, Any] = field(default_factory=dict)

    def constants(self, device: str, framework: str | None = None) -> Constants:
        """The constants of a device, as a framework reaches them.

        Args:
            device: Device class, see :func:`device_class`.
            framework: Framework generation; ``None`` for what all have in common.
        """
        keys = ["global", f"architecture:{architecture(device)}", f"device:{device}"]
        if framework is not None:
            keys += [f"framework:{framework}", f"pair:{framework}@{device}"]
        values = {}
        for spec in SPECS:
            known = self.factors.get(spec.name, {})
            values[spec.name] = spec.default * math.prod(known.get(key, 1.0) for key in keys)
        return Constants(values, notes=self._notes(device))

    def planning(self, device: str) -> Constants:
        """The constants of a device for plans that autopar runs itself; see :data:`OWN_STACK`.

        torch's attention is FlashAttention-2, which knows no instructions younger than Ampere's;
        the constants of what all have in common are of the kernel made for the device.
        """
        common = self.constants(device)
        own = {
            name: getattr(self.constants(device, framework), name)
            for name, framework in OWN_STACK.items()
        }
        if architecture(device) in ("hopper", "blackwell"):
            own["flash_efficiency"] = common.flash_efficiency / OLDER_ATTENTION
        values = {spec.name: getattr(common, spec.name) for spec in SPECS}
        return Constants(values | own, notes=common.notes)

    def _notes(self, device: str) -> tuple[str, ...]:
        seen = any(f"device:{device}" in known for known in self.factors.values())
        if seen:
            return ()
        return (f"no published run calibrates {device}: constants of its architecture are used",)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "factors": {k: dict(v) for k, v in self.factors.items()},
            "fitted_on": dict(self.fitted_on),
        }

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        write_document(path, SCHEMA, SCHEMA_VERSION, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read a calibration file.

        Raises:
            InputError: Missing, truncated, of another schema, or a factor is not positive.
        """
        data = read_json(path)
        check_schema(data, path, SCHEMA, SCHEMA_VERSION)
        try:
            factors = {
                str(name): {str(key): float(value) for key, value in known.items()}
                for name, known in data["factors"].items()
            }
            fitted_on = dict(data["fitted_on"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: bad calibration: {error}", hint="fit it again") from error
        wrong = [n for n, known in factors.items() if any(not v > 0 for v in known.values())]
        if wrong:
            raise InputError(f"{path}: factor of {wrong[0]} is not positive", hint="fit it again")
        return cls(factors=factors, fitted_on=fitted_on)

    @classmethod
    def shipped(cls) -> Calibration:
        """The calibration that comes with autopar."""
        return _shipped()


@cache
def _shipped() -> Calibration:
    return Calibration.load(SHIPPED) if SHIPPED.exists() else Calibration()


ARCHITECTURES = {
    "t4": "turing",
    "rtx": "ampere",
    "v100": "volta",
    "a10g": "ampere",
    "a100": "ampere",
    "a800": "ampere",
    "l40s": "ada",
    "h100": "hopper",
    "h200": "hopper",
    "h800": "hopper",
    "gh200": "hopper",
    "b200": "blackwell",
    "b300": "blackwell",
    "gb200": "blackwell",
    "gb300": "blackwell",
}
"""Device class -> architecture."""


FLOP_PER_JOULE = {
    "volta": 4.17e11,
    "turing": 4.17e11,
    "ampere": 7.8e11,
    "ada": 1.03e12,
    "hopper": 1.41e12,
    "blackwell": 2.25e12,
}
"""Dense 16-bit peak over board power of the board that holds its clock: V100 SXM2 (Turing is made
in the same 12 nm), A100 SXM, L40S, H100 SXM, B200."""


SUSTAINED_SHARE = {"t4": 0.44}
"""Device class -> part of the boost clock under continuous products, where less was measured than
the rule of :func:`clock_share` says. T4: 24 TFLOP/s over 100 products of side 4,096, which is
``gemm_efficiency`` of 0.44 of its peak; an answer there names its power cap as the cause
(forums.developer.nvidia.com/t/264462). Jia et al. 2019 (arXiv 1903.07486) saw 41.6 for a while.
"""


def clock_share(device: str, peak_flop_per_s: float, power_watt: float | None) -> float:
    """Part of the tensor cores' boost clock that a board holds within its power limit.

    Power goes with the square of the clock (voltage falls with it), so a board with less power
    than its peak needs at the architecture's FLOPs per joule runs at the root of the ratio.
    :data:`SUSTAINED_SHARE` comes before the rule; without a power limit neither is applied.

    Args:
        device: Device class.
        peak_flop_per_s: Dense 16-bit peak.
        power_watt: Board power limit, ``None`` when unknown.
    """
    per_joule = FLOP_PER_JOULE.get(architecture(device))
    if per_joule is None or power_watt is None:
        return 1.0
    if device in SUSTAINED_SHARE:
        return SUSTAINED_SHARE[device]
    return float(min(1.0, (power_watt * per_joule / peak_flop_per_s) ** 0.5))


def device_class(name: str) -> str:
    """``a100-80gb-sxm`` -> ``a100``: the part of a catalogue name that calibration goes by."""
    return name.split("@", maxsplit=1)[0].split("-", maxsplit=1)[0]


def architecture(device: str) -> str:
    """Architecture of a device class, the class itself when unknown."""
    return ARCHITECTURES.get(device, device)
