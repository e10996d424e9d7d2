"""GraphProfile: the op graph, its blocks and its measured times, as one versioned file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import networkx as nx

from autopar.core.estimate import Estimate
from autopar.core.io import check_schema, content_hash, read_json, write_document
from autopar.graph import codec
from autopar.graph.amount import Amount
from autopar.graph.block import Block, BlockEdge
from autopar.graph.convergence import Convergence
from autopar.graph.measurement import Measurement
from autopar.graph.noise import GradientNoise
from autopar.graph.op import Op, OpEdge

SCHEMA = "autopar.graph_profile"
SCHEMA_VERSION = 1
Derived = TypeVar("Derived")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerState:
    """What the optimizer keeps and moves.

    Attributes:
        name: Class name, e.g. ``AdamW``.
        state_bytes_per_parameter_byte: State bytes over parameter bytes (AdamW in fp32: 2.0).
    """

    name: str
    state_bytes_per_parameter_byte: float


@dataclass(frozen=True, kw_only=True)
class GraphProfile:
    """The traced training graph of a task and what its parts cost.

    Attributes:
        task: Task name.
        target: Target string, ``None`` for a task given as an object.
        fingerprint: Hash of the op sequence; a plan runs only on a model with the same one.
        batch: Samples in the traced batch.
        device: Device the times are for (``cpu``, or a catalogue name), or ``meta``.
        parameters: Parameter name -> (element count, bytes); tied parameters once.
        buffer_bytes: Bytes of buffers (BatchNorm statistics).
        input_bytes: Bytes of inputs and target per sample.
        ops: Ops in order.
        edges: Tensors between ops.
        blocks: Chain of blocks that covers the ops without gaps.
        block_edges: Tensors between blocks (replicated values are not among them).
        optimizer: Optimizer facts.
        measurement: Measured times, or ``None`` when priced from a catalogue.
        uncounted: Op target -> reason, for ops whose FLOPs no formula counts.
        smallest_microbatch: Fewest samples the model trains on (BatchNorm over one value fails).
        gradient_noise: The gradient noise scale, where it was measured.
        convergence: Measured steps to the same loss of sync modes, one entry per number of ranks.
        provenance: Who made it.

    Invariants: ops form a DAG in index order; block sums equal graph sums.
    """

    task: str
    target: str | None
    fingerprint: str
    batch: int
    device: str
    parameters: dict[str, tuple[int, int]]
    buffer_bytes: float
    input_bytes: float
    ops: tuple[Op, ...]
    edges: tuple[OpEdge, ...]
    blocks: tuple[Block, ...]
    block_edges: tuple[BlockEdge, ...]
    optimizer: OptimizerState
    measurement: Measurement | None = None
    uncounted: dict[str, str] = field(default_factory=dict)
    smallest_microbatch: int = 1
    gradient_noise: GradientNoise | None = None
    convergence: tuple[Convergence, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def parameter_count(self) -> int:
        """Number of parameter elements, tied ones once."""
        return sum(count for count, _ in self.parameters.values())

    @cached_property
    def parameter_bytes(self) -> int:
        """Bytes of the parameters, tied ones once."""
        return sum(size for _, size in self.parameters.values())

    @cached_property
    def forward_flop(self) -> Amount:
        """Forward FLOPs of one microbatch."""
        return Amount.total([block.forward_flop for block in self.blocks])

    @cached_property
    def backward_flop(self) -> Amount:
        """Backward FLOPs of one microbatch."""
        return Amount.total([block.backward_flop for block in self.blocks])

    @cached_property
    def saved_bytes(self) -> Amount:
        """Activation bytes one microbatch keeps for backward."""
        return Amount.total([block.saved_bytes for block in self.blocks])

    @property
    def others_share(self) -> float | None:
        """Share of the processors that other programs took while ops were timed, if noted."""
        return self.provenance.get("others_share")

    @property
    def unique_blocks(self) -> int:
        """Number of different block signatures."""
        return len({block.signature for block in self.blocks})

    def multipliers(self, ranks: int) -> dict[str, Estimate]:
        """Measured steps multipliers by canonical sync name, for ranks that synchronise."""
        found: dict[str, Estimate] = {}
        for item in self.convergence:
            if item.ranks == ranks:
                found |= item.multipliers
        return found

    @cached_property
    def hash(self) -> str:
        """Content hash of everything but provenance."""
        body = self.to_dict()
        body.pop("provenance")
        return content_hash(body)

    def derived(self, make: Callable[[GraphProfile], Derived]) -> Derived:
        """What ``make`` finds out from the profile alone: made once and kept with it."""
        if make not in self._derived:
            self._derived[make] = make(self)
        found: Derived = self._derived[make]
        return found

    @cached_property
    def _derived(self) -> dict[Callable[[GraphProfile], Any], Any]:
        return {}

    @cached_property
    def graph(self) -> nx.DiGraph[int]:
        """The op graph: nodes are op indices with ``op``, edges carry ``edge``."""
        graph: nx.DiGraph[int] = nx.DiGraph(task=self.task, fingerprint=self.fingerprint)
        graph.add_nodes_from((op.index, {"op": op, "module": op.module}) for op in self.ops)
        graph.add_edges_from((e.producer, e.consumer, {"edge": e}) for e in self.edges)
        return graph

    @cached_property
    def block_graph(self) -> nx.DiGraph[int]:
        """The block graph: nodes carry ``block``, edges a list of ``tensors``."""
        graph: nx.DiGraph[int] = nx.DiGraph(task=self.task)
        graph.add_nodes_from((b.index, {"block": b}) for b in self.blocks)
        for edge in self.block_edges:
            if not graph.has_edge(edge.producer, edge.consumer):
                graph.add_edge(edge.producer, edge.consumer, tensors=[])
            graph[edge.producer][edge.consumer]["tensors"].append(edge)
        return graph

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the schema header."""
        return codec.profile_to_dict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], origin: str = "profile") -> GraphProfile:
        """Check and build.

        Raises:
            InputError: A field is missing, of the wrong type or inconsistent.
        """
        return codec.profile_from_dict(data, origin)

    def save(self, path: Path) -> None:
        """Write the profile file atomically."""
        write_document(path, SCHEMA, SCHEMA_VERSION, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> GraphProfile:
        """Read a profile file.

        Raises:
            InputError: Missing, truncated, of another schema or inconsistent.
        """
        data = read_json(path)
        check_schema(data, path, SCHEMA, SCHEMA_VERSION)
        return cls.from_dict(data, str(path))
