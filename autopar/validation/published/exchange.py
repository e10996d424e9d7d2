"""Data parallel training by all-reduce or parameter servers: rows that state network and mode.

These rows name neither device nor sequence length, so compute is one fitted rate with a factor
per model; what they can tell is how gradient exchange adds to it. Per step, ``B`` bytes of float32
gradients, ``g`` ranks in each of ``N`` nodes:

    inside            2 (g-1)/g B / pcie
    all-reduce        2 (N-1)/N B / (share * network)
    parameter server  B / (share * network)                    push beside pull
    exchange          (inside^4 + across^4)^(1/4)              the two are pipelined
    no overlap        compute + exchange + fixed
    overlapped        compute / 3 + ((2 compute / 3)^4 + exchange^4)^(1/4) + fixed
    fixed             B / update + tensors * latency, or + scheduling where tensors are cut

``update`` is the optimizer, which waits for the exchange. Cut tensors travel as pieces of one size
by priority: what that costs does not go with the number of tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autopar.core.errors import InputError
from autopar.core.io import read_document, write_document
from autopar.validation.rows.table import Entry
from autopar.validation.step_time.held_out import FOLDS, fold_of
from autopar.validation.step_time.predictor import Prediction

Array = npt.NDArray[np.float64]

SCHEMA, SCHEMA_VERSION = "autopar.exchange_calibration", 1
SHIPPED = Path(__file__).with_name("exchange.json")
FREEDOM, SCALE, STEPS, NUDGE = 4.0, 0.05, 25, 1e-4
SPREAD, FLOOR = 2.34, 0.12
"""Half-width of a 90 % range in standard deviations of the fit's residuals, and its least."""
BACKWARD = 2 / 3
"""Part of compute that exchange can hide under."""
TOKENS = 64
"""Sequence length assumed for language models, whose rows do not state one."""
RESNET_FLOP = 24.5e9
"""Forward and backward of an image of 224 pixels: three times 8.2 GFLOP (He et al. 2016)."""
TENSORS = {"resnet": 161, "bert-large": 393, "bert-base": 201}
"""Parameter tensors by model, counted in the public implementations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeRow:
    """One run.

    Attributes:
        id: Name in the CSV.
        family: Source.
        group: Model, device and count.
        fingerprint: Hash of the configuration.
        model: Lower case name.
        flop: FLOPs of a microbatch.
        gradient_bytes: Float32 gradients.
        tensors: Parameter tensors.
        nodes: Machines.
        per_node: Ranks in each.
        network_bytes_per_s: Nominal rate of a machine and direction.
        network: Text of the network: TCP and RDMA reach different parts of their rate.
        server: Parameter servers instead of all-reduce.
        overlapped: Exchange beside the backward pass.
        merged: Small gradients are sent together.
        partitioned: Tensors are cut and sent by priority.
        measured_s: Step time, ``None`` when the row has none.
    """

    id: str
    family: str
    group: str
    fingerprint: str
    model: str
    flop: float
    gradient_bytes: float
    tensors: int
    nodes: float
    per_node: float
    network_bytes_per_s: float
    network: str
    server: bool
    overlapped: bool
    merged: bool
    partitioned: bool
    measured_s: float | None

    @property
    def share(self) -> str:
        """Key of the part of the network's rate that is reached."""
        kind = "server" if self.server else "all-reduce"
        return f"share:{self.network}:{kind}{':partitioned' * self.partitioned}"

    @property
    def latency(self) -> str:
        """Key of the latency per tensor, of the time per step where tensors are cut."""
        kind = "server" if self.server else "all-reduce"
        if self.partitioned:
            return f"scheduling:{kind}"
        return f"latency:{kind}{':overlapped' * self.overlapped}{':merged' * self.merged}"


def exchange_row(entry: Entry) -> ExchangeRow | None:
    """The run of a line that states a sync mode, size, batch and network; else ``None``."""
    mode = re.search(r"sync mode: (.*?);", entry.text("notes"))
    network = re.search(r"network (\d+)(Gb\w+) with ([\w/]+)", entry.text("notes"))
    size, batch = entry.positive("params_b"), entry.positive("micro_batch")
    devices = entry.positive("gpus")
    if not (mode and network and size and batch and devices):
        return None
    model = entry.text("model").lower()
    per_node = min(entry.positive("gpus_per_node") or 4.0, devices)
    tensors = next((count for name, count in TENSORS.items() if name in model), 300)
    sample = RESNET_FLOP if "resnet" in model else 6 * size * 1e9 * TOKENS
    rate = entry.positive("inter_gbps") or float(network[1])
    return ExchangeRow(
        id=entry.id,
        family=entry.family,
        group=f"{entry.text('model')}|{entry.text('gpu')}|{devices:g}",
        fingerprint=entry.fingerprint + mode[1] + network[0],
        model=model,
        flop=sample * batch,
        gradient_bytes=4e9 * size,
        tensors=tensors,
        nodes=devices / per_node,
        per_node=per_node,
        network_bytes_per_s=rate * 1e9 / 8,
        network=network[1] + network[2] + "/" + network[3],
        server="parameter server" in mode[1],
        overlapped="no overlap" not in mode[1],
        merged="merged" in mode[1],
        partitioned="partition" in mode[1],
        measured_s=entry.positive("step_time_s"),
    )


PRIORS: Mapping[str, tuple[float, float]] = {
    "rate": (6e12, 1.0),
    "model": (1.0, 0.5),
    "pcie": (8e9, 0.5),
    "share": (0.4, 0.7),
    "latency": (1e-4, 1.0),
    "scheduling": (0.02, 1.0),
    "update": (1e10, 1.0),
}
"""Kind of constant -> value before any row, and the width of its logarithm: FLOP/s of compute,
factor of a model, bytes/s inside a machine, part of the network's rate, seconds per tensor,
seconds per step of cutting tensors, gradient bytes/s of the optimizer (a dozen passes of an
optimizer that is not fused)."""


class ExchangeModel:
    """Constants of the formula above.

    Args:
        values: Constants by key; missing ones take their prior value.
        sd: Standard deviation of log time around the formula.
    """

    def __init__(self, values: Mapping[str, float] | None = None, sd: float = 0.3) -> None:
        self.values = dict(values or {})
        self.sd = sd

    def seconds(self, rows: Sequence[ExchangeRow]) -> Array:
        """Step time of each row."""
        return np.array([self._seconds(row) for row in rows])

    def predict(self, rows: Sequence[ExchangeRow]) -> Prediction:
        """Step time of each row with a 90 % range."""
        value, half = self.seconds(rows), max(SPREAD * self.sd, FLOOR)
        return Prediction(value_s=value, low_s=value * np.exp(-half), high_s=value * np.exp(half))

    def _get(self, key: str) -> float:
        return self.values.get(key, PRIORS[key.split(":", maxsplit=1)[0]][0])

    def _seconds(self, row: ExchangeRow) -> float:
        compute = row.flop / self._get("rate") * self._get(f"model:{row.model}")
        size, nodes, ranks = row.gradient_bytes, row.nodes, row.per_node
        inside = 2 * (ranks - 1) / ranks * size / self._get("pcie")
        copies = 1.0 if row.server else 2 * (nodes - 1) / nodes
        across = copies * size / (row.network_bytes_per_s * self._get(row.share))
        exchange = float((inside**4 + (across if nodes > 1 else 0.0) ** 4) ** 0.25)
        messages = 1 if row.partitioned else row.tensors
        fixed = size / self._get("update") + messages * self._get(row.latency)
        if not row.overlapped:
            return compute + exchange + fixed
        hidden = float(((BACKWARD * compute) ** 4 + exchange**4) ** 0.25)
        return (1 - BACKWARD) * compute + hidden + fixed


def fit_exchange(rows: Sequence[ExchangeRow]) -> ExchangeModel:
    """Robust maximum a posteriori fit, as :func:`autopar.validation.step_time.fit.fit`."""
    rows = [row for row in rows if row.measured_s]
    keys = ["rate", "pcie", "update"]
    keys += sorted({key for r in rows for key in (f"model:{r.model}", r.share, r.latency)})
    prior = np.array([np.log(PRIORS[key.split(":")[0]][0]) for key in keys])
    precision = np.array([PRIORS[key.split(":")[0]][1] ** -2.0 for key in keys])
    target = np.log([row.measured_s or np.nan for row in rows])
    logs = prior.copy()

    def residual(logs: Array) -> Array:
        values = dict(zip(keys, np.exp(logs).tolist(), strict=True))
        return np.log(ExchangeModel(values).seconds(rows)) - target

    for step in range(STEPS):
        error = residual(logs)
        slopes = [residual(logs + NUDGE * unit) - error for unit in np.eye(len(keys))]
        jacobian = np.array(slopes).T / NUDGE
        pull = (FREEDOM + 1) / (FREEDOM * SCALE**2 + error**2)
        normal = jacobian.T @ (jacobian * pull[:, None]) + np.diag(precision)
        gradient = jacobian.T @ (pull * error) + precision * (logs - prior)
        move = np.linalg.solve(normal, gradient)
        logs = logs - np.clip(move, -0.5, 0.5) * (0.5 if step < 3 else 1.0)
    sd = float(np.sqrt(np.median(residual(logs) ** 2)) / 0.6745) if rows else 0.3
    return ExchangeModel(dict(zip(keys, np.exp(logs).tolist(), strict=True)), sd)


def hold_out(
    rows: Sequence[ExchangeRow], known: Sequence[ExchangeRow], ready: ExchangeModel
) -> Prediction:
    """Predict rows; those the fit knows by a fit that saw nothing of their group.

    Args:
        rows: Rows to predict.
        known: Rows the model ``ready`` was fitted on.
        ready: For the others.
    """
    prints = {row.fingerprint for row in known}
    found = ready.predict(rows)
    for fold in range(FOLDS):
        held = [
            i
            for i, row in enumerate(rows)
            if row.fingerprint in prints and fold_of(row.group) == fold
        ]
        if held:
            model = fit_exchange([row for row in known if fold_of(row.group) != fold])
            part = model.predict([rows[i] for i in held])
            found.value_s[held] = part.value_s
            found.low_s[held], found.high_s[held] = part.low_s, part.high_s
    return found


def save(model: ExchangeModel, rows: Sequence[ExchangeRow], path: Path = SHIPPED) -> None:
    """Write constants and the fingerprints of their rows atomically."""
    body = {
        "values": {key: float(f"{value:.5g}") for key, value in model.values.items()},
        "sd": float(f"{model.sd:.4g}"),
        "fingerprints": sorted(row.fingerprint for row in rows if row.measured_s),
    }
    write_document(path, SCHEMA, SCHEMA_VERSION, body)


def load(path: Path = SHIPPED) -> tuple[ExchangeModel, frozenset[str]]:
    """Shipped constants and the fingerprints of the rows they rest on.

    Raises:
        InputError: Missing or damaged.
    """
    data = read_document(path, SCHEMA, SCHEMA_VERSION)
    try:
        values = {str(key): float(value) for key, value in data["values"].items()}
        return ExchangeModel(values, float(data["sd"])), frozenset(data["fingerprints"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: bad constants: {error}", hint="fit them again") from error
