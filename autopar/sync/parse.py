"""Sync modes as users write them: ``local_sgd:8+topk:0.01``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from autopar.core.errors import InputError
from autopar.core.estimate import Estimate
from autopar.core.registry import Registry
from autopar.plans.mesh import Mesh
from autopar.sync.base import (
    ONE,
    AbstractCompression,
    AbstractSyncMode,
    Choice,
    Literature,
    Option,
    Payload,
    Semantics,
    SyncContext,
    SyncGroup,
    SyncWork,
    check_options,
)
from autopar.sync.registry import COMPRESSIONS, SYNC_MODES

Item = TypeVar("Item", bound=Choice)


@dataclass(frozen=True)
class Sync:
    """A sync mode and the compression of what it sends.

    Attributes:
        mode: When and with whom.
        compression: In how many bytes.
    """

    mode: AbstractSyncMode
    compression: AbstractCompression

    @property
    def name(self) -> str:
        """Canonical form, which :func:`parse_sync` reads; ``Plan.sync`` holds it."""
        if self.compression.exact:
            return _written(self.mode)
        return f"{_written(self.mode)}+{_written(self.compression)}"

    @property
    def semantics(self) -> Semantics:
        """The mode's; an exact mode is lossy with a compression."""
        if self.mode.semantics == "exact" and not self.compression.exact:
            return "lossy"
        return self.mode.semantics

    @property
    def exact(self) -> bool:
        """True when the mathematics of a step do not change."""
        return self.semantics == "exact"

    @property
    def shardable(self) -> bool:
        """True when ZeRO may share out states, gradients or weights among the same ranks."""
        return self.mode.shardable and self.compression.exact

    def check_mesh(self, mesh: Mesh) -> str | None:
        """Why ranks along the mesh's axes cannot synchronise this way, else ``None``."""
        if self.compression.name in self.mode.refuses:
            return f"{self.mode.name} does not work with {self.compression.name}"
        if mesh.dp_shard > 1 and not self.shardable:
            return (
                f"{self.name} keeps whole weights and states on each replica, "
                f"dp_shard={mesh.dp_shard} shares them out"
            )
        for axis, degree in mesh.to_dict().items():
            if degree > 1 and axis not in (*self.mode.axes, "dp_shard"):
                return f"{self.mode.name} does not work with {axis}={degree}"
        if mesh.ep > 1 and not self.compression.exact:
            return (
                f"{self.compression.name} takes one mean over all replicas, the experts of "
                f"ep={mesh.ep} have groups of their own"
            )
        return None

    def check_precision(self, precision: str) -> str | None:
        """Why it cannot be used where products are computed in a precision, else ``None``."""
        if precision == "float16" and self.mode.steps_on_servers:
            return f"{self.name} in float16: ranks must agree to skip a step, servers cannot"
        return None

    def check(self, group: SyncGroup, *, element_bytes: float = 4.0) -> str | None:
        """Why these ranks cannot synchronise this way, else ``None``."""
        if group.ranks < 2:
            return f"{self.name} needs two or more ranks with the same parameters"
        payload = Payload(size_bytes=element_bytes, element_bytes=element_bytes)
        return self.mode.check(group) or self.compression.check(payload)

    def work(self, size_bytes: float, group: SyncGroup, *, element_bytes: float = 4.0) -> SyncWork:
        """Messages and memory traffic of one rank per optimizer step.

        Args:
            size_bytes: Gradient bytes of a rank, ``P``.
            group: Ranks with the same parameters; one rank has nothing to do.
            element_bytes: Bytes of a gradient element.
        """
        if group.ranks < 2 or size_bytes <= 0:
            return SyncWork(messages=())
        payload = Payload(size_bytes=size_bytes, element_bytes=element_bytes)
        return SyncWork(
            messages=self.mode.messages(payload, group, self.compression),
            streamed_bytes=self.mode.streamed_bytes(payload, group, self.compression),
        )

    def memory_bytes(
        self, size_bytes: float, group: SyncGroup, *, element_bytes: float = 4.0
    ) -> float:
        """Bytes on the busiest rank beside weights, gradients and optimizer state."""
        if group.ranks < 2 or size_bytes <= 0:
            return 0.0
        payload = Payload(size_bytes=size_bytes, element_bytes=element_bytes)
        return self.mode.memory_bytes(payload, group, self.compression)

    def steps_multiplier(self, context: SyncContext) -> Estimate:
        """Samples to the same loss over the samples exact training needs.

        A multiplier measured on the task has precedence. Without one, that of the mode times
        that of the compression, both from :attr:`literature`.
        """
        measured = context.measured.get(self.name)
        if measured is not None:
            return measured
        result = ONE
        for item in self.literature:
            result = _product(result, item.multiplier)
        return result

    @property
    def literature(self) -> tuple[Literature, ...]:
        """What publications say of the mode and of the compression; empty for exact ones."""
        found = (self.mode.literature, self.compression.literature)
        return tuple(item for item in found if item is not None)


def _product(a: Estimate, b: Estimate) -> Estimate:
    return Estimate(
        value=a.value * b.value, low=a.low * b.low, high=a.high * b.high, source="assumed"
    )


@lru_cache(maxsize=256)
def parse_sync(text: str) -> Sync:
    """The mode and compression of ``MODE[:OPTION...][+COMPRESSION[:OPTION...]]``.

    Raises:
        InputError: A name is unknown, or an option is not a number in its range.
    """
    mode, plus, compression = text.strip().partition("+")
    if plus and not compression.strip():
        raise InputError(
            f"sync mode '{text}' ends in '+'",
            hint="name a compression: " + ", ".join(COMPRESSIONS),
        )
    return Sync(
        mode=_item(SYNC_MODES, mode),
        compression=_item(COMPRESSIONS, compression if plus else "none"),
    )


def canonical_sync(text: str) -> str:
    """The form in which equal sync modes are equal strings.

    Raises:
        InputError: The text does not parse.
    """
    return parse_sync(text).name


def _item(registry: Registry[type[Item]], text: str) -> Item:
    name, *values = (part.strip() for part in text.split(":"))
    kind = registry.load(name)
    options = kind.options
    if len(values) > len(options):
        accepted = ":".join([name, *(option.name.upper() for option in options)])
        raise InputError(
            f"{registry.kind} '{text.strip()}' has {len(values)} options, {name} takes "
            f"{len(options)}",
            hint=f"write {accepted}",
        )
    chosen: dict[str, Any] = {
        option.name: _number(registry.kind, name, option, value)
        for option, value in zip(options, values, strict=False)
    }
    item = kind(**chosen)
    check_options(registry.kind, item)
    return item


def _number(kind: str, name: str, option: Option, text: str) -> float:
    try:
        return int(text) if option.whole else float(text)
    except ValueError as error:
        form = "a whole number" if option.whole else "a number"
        raise InputError(
            f"{option.name} of {kind} '{name}' is '{text}', {form} is needed",
            hint=f"write {name}:{option.low:g}",
        ) from error


def _written(item: Choice) -> str:
    parts = [item.name]
    for option in item.options:
        value: float | None = getattr(item, option.name)
        if value is not None:
            parts.append(f"{value:.12g}")
    return ":".join(parts)
