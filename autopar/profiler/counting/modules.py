"""The module tree over the op order: which modules repeat, and which runs of ops they own."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from autopar.graph import Op
from autopar.profiler.counting.dataflow import module_classes
from autopar.trace import TracedTask

_CONTAINERS = frozenset({"", "Sequential", "ModuleList", "ModuleDict"})


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of ops ``[first, stop)`` of one module.

    Attributes:
        path: Module path.
        repeats: True when the module has siblings of the same class (layers of a stack).
    """

    first: int
    stop: int
    path: str
    repeats: bool


class ModuleTree:
    """Module paths as a tree.

    Args:
        traced: The task, for the classes of its modules.
        ops: Its ops, for their module paths.
        work: Relative cost of every op.
        crossing: Bytes that cross each cut position.
        large: Share of the whole work above which a module is opened.
        slack: A position inside a layer is cheap when at most this many times the bytes cross it
            that cross the ends of the layer.
        layer_kernels: Layers inside layers count as such from this many kernels on.
    """

    def __init__(
        self,
        traced: TracedTask,
        ops: tuple[Op, ...],
        work: list[float],
        crossing: list[float],
        *,
        large: float,
        slack: float,
        layer_kernels: int,
    ) -> None:
        self._ops = ops
        self._work = work
        self._crossing = crossing
        self._slack = slack
        self._layer_kernels = layer_kernels
        self._large = large * sum(work)
        self._children: dict[str, set[str]] = defaultdict(set)
        self._classes: dict[str, str] = {}
        for node in traced.nodes:
            self._classes |= module_classes(node)
        for path in {op.module for op in ops}:
            parts = path.split(".") if path else []
            for depth in range(len(parts)):
                self._children[".".join(parts[:depth])].add(".".join(parts[: depth + 1]))
        self._repeated = {path for parent in self._children for path in self._twins(parent)}

    def _twins(self, parent: str) -> set[str]:
        """Children of a module that share a class with another child."""
        kinds = {path: self._kind(path) for path in self._children[parent]}
        counts = Counter(kinds.values())
        return {p for p, kind in kinds.items() if kind not in _CONTAINERS and counts[kind] > 1}

    def _kind(self, path: str) -> str:
        return self._classes.get(path, "")

    def segments(self, first: int = 0, stop: int | None = None, path: str = "") -> list[Segment]:
        """Split a range of ops into modules, opening large ones down to repeated layers."""
        stop = len(self._ops) if stop is None else stop
        result: list[Segment] = []
        for begin, end, child in self._runs(first, stop, path):
            if child is None:
                result.append(Segment(begin, end, path, False))
            elif child in self._repeated and self._has_body(child):
                inner = self._inner_stack(begin, end, child)
                result += inner or [Segment(begin, end, child, True)]
            elif child in self._children and self._opens(begin, end, child):
                result += self.segments(begin, end, child)
            else:
                heavy = sum(self._work[begin:end]) > self._large / 2
                result.append(Segment(begin, end, child, heavy and child in self._repeated))
        return result

    def _inner_stack(self, first: int, stop: int, path: str) -> list[Segment]:
        """Segments of a large layer that is itself a stack of layers (a ResNet stage)."""
        whole = sum(self._work[first:stop])
        if whole <= self._large:
            return []
        segments = self.segments(first, stop, path)
        layers = [s for s in segments if s.repeats and self._kernels(s) >= self._layer_kernels]
        share = sum(sum(self._work[s.first : s.stop]) for s in layers)
        limit = self._slack * max(self._crossing[first], self._crossing[stop])
        cheap = all(self._crossing[p] <= limit for s in layers for p in (s.first, s.stop))
        return segments if len(layers) > 1 and share > whole / 2 and cheap else []

    def _kernels(self, segment: Segment) -> int:
        return sum(op.kernels for op in self._ops[segment.first : segment.stop])

    def _has_body(self, path: str) -> bool:
        return path in self._children

    def _opens(self, first: int, stop: int, path: str) -> bool:
        prefix = path + "."
        layered = any(p.startswith(prefix) and self._has_body(p) for p in self._repeated)
        return layered or sum(self._work[first:stop]) > self._large

    def _runs(self, first: int, stop: int, path: str) -> list[tuple[int, int, str | None]]:
        """Maximal runs of ops in the same child of a module; ``None`` for its own ops."""
        runs: list[tuple[int, int, str | None]] = []
        for index in range(first, stop):
            child = self._child_of(self._ops[index].module, path)
            if runs and runs[-1][2] == child:
                runs[-1] = (runs[-1][0], index + 1, child)
            else:
                runs.append((index, index + 1, child))
        return runs

    @staticmethod
    def _child_of(module: str, path: str) -> str | None:
        prefix = path + "." if path else ""
        if not module.startswith(prefix) or module == path:
            return None
        return prefix + module[len(prefix) :].split(".", 1)[0]
