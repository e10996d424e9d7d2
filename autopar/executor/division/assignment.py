"""How every op of a graph runs on one tensor parallel rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch.fx import Node

from autopar.executor.division.editor import Divided
from autopar.executor.division.math_rules import MATH_RULES, pointwise
from autopar.executor.division.ops import is_elementwise
from autopar.executor.division.parts import FinerSectionsError, Part, UndividableError
from autopar.executor.division.products import (
    columns,
    embedding_columns,
    embedding_on_part,
    on_part,
    product_of,
)
from autopar.executor.division.shape_rules import SHAPE_RULES
from autopar.executor.division.site import Layout, Site, Step, shape_of, wrap
from autopar.executor.division.zigzag_rules import ZIGZAG_RULES
from autopar.strategies.tensor import LOSSES, TensorSplit
from autopar.trace import TracedTask

RULES = {**SHAPE_RULES, **MATH_RULES, **ZIGZAG_RULES}
"""Op name -> what it does with a part."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What each op does.

    Attributes:
        steps: Op -> its step, for ops that are not run whole.
        layouts: Value -> its part, for values that are parts.
        columns: Products divided by columns.
        reasons: Columns that the planner would divide -> why they are computed whole.
    """

    steps: Mapping[Node, Step]
    layouts: Mapping[Node, Layout]
    columns: frozenset[int]
    reasons: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The ops that the planner divides, by their place in the graph at hand.

    Attributes:
        columns: Products divided by columns.
        embeddings: Embeddings divided by vocabulary.
        vocabularies: Those of the columns that may be padded.
    """

    columns: frozenset[int]
    embeddings: frozenset[int]
    vocabularies: frozenset[int]


def planned(split: TensorSplit, traced: TracedTask, divided: Divided) -> Planned:
    """What the planner divides of a whole graph, in a graph that was divided before.

    Args:
        split: Ops of the whole graph.
        traced: The whole graph.
        divided: The graph so far; each of these ops is still one op there.
    """

    def moved(ops: frozenset[int]) -> frozenset[int]:
        return frozenset(place(op) for op in ops)

    def place(op: int) -> int:
        target, nodes = traced.nodes[op].target, divided.traced.nodes
        return next(i for i in range(*divided.span(op, op + 1)) if nodes[i].target == target)

    return Planned(
        columns=moved(split.columns),
        embeddings=moved(split.embeddings),
        vocabularies=moved(split.vocabularies),
    )


def assign(
    traced: TracedTask, split: Planned | TensorSplit, count: int, *, sequence_length: int = 0
) -> Assignment:
    """Divide what the planner divides, as far as the ops allow.

    The planner knows shapes, not arguments: columns whose parts reach an op that cannot work on
    them, or weights that two ops would cut in different ways, are taken out and the rest is
    assigned again.

    Args:
        traced: The graph.
        split: Which products and embeddings the planner divides.
        count: Ranks.
        sequence_length: Divide sequences of this length outside the regions; 0: do not.
    """
    chosen = set(split.columns)
    embeddings = set(split.embeddings)
    sections: dict[int, tuple[int, ...]] = {}
    reasons: dict[int, str] = {}
    while True:
        walk = _Walk(traced, split, count, sequence_length, chosen, embeddings, sections)
        walk.run()
        if walk.finer:
            sections.update(walk.finer)
            continue
        walk.check_weights()
        lost = dict.fromkeys(walk.unfinished(), "its parts end in no second product and no loss")
        lost.update(walk.conflicts)
        if not lost and not walk.bad_embeddings:
            return Assignment(
                steps=walk.steps,
                layouts=walk.layouts,
                columns=frozenset(chosen),
                reasons=reasons,
            )
        reasons.update({c: why for c, why in lost.items() if c in chosen})
        chosen -= set(lost)
        embeddings -= walk.bad_embeddings


@dataclass
class _Walk:
    """One pass over the graph with some columns."""

    traced: TracedTask
    split: Planned | TensorSplit
    count: int
    length: int
    chosen: set[int]
    embeddings: set[int]
    sections: dict[int, tuple[int, ...]]
    steps: dict[Node, Step] = field(default_factory=dict)
    layouts: dict[Node, Layout] = field(default_factory=dict)
    origins: dict[Node, frozenset[int]] = field(default_factory=dict)
    conflicts: dict[int, str] = field(default_factory=dict)
    finer: dict[int, tuple[int, ...]] = field(default_factory=dict)
    bad_embeddings: set[int] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)

    def run(self) -> None:
        """Decide every op in order."""
        for index, node in enumerate(self.traced.nodes):
            site = Site(node, self.layouts, self.count)
            mine = self._origins(node)
            try:
                step = self._step(index, site)
            except FinerSectionsError as error:
                step = None
                if not self._refine(site, error):
                    self._conflict(node, mine, f"{site.name} needs {error}")
            except UndividableError as error:
                step = None
                self._conflict(node, mine, str(error))
            if step is not None:
                self._take(index, node, step, mine)

    def _origins(self, node: Node) -> frozenset[int]:
        found = [self.origins[n] for n in node.all_input_nodes if n in self.origins]
        return frozenset().union(*found) if found else frozenset()

    def _conflict(self, node: Node, origins: frozenset[int], why: str) -> None:
        for column in origins | ({self.traced.index[node]} & self.chosen):
            self.conflicts.setdefault(column, f"{node.name}: {why}")
        self.bad_embeddings |= {self.traced.index[node]} & self.embeddings

    def _refine(self, site: Site, error: FinerSectionsError) -> bool:
        """Ask the columns of an operand for more sections; false if that was tried before."""
        operand = error.operand
        if not isinstance(operand, Node):
            operand = next(n for n in site.node.all_input_nodes if self.layouts.get(n))
        if site.region != "columns":
            return False
        asked = False
        for column in self.origins.get(operand, frozenset()):
            product = product_of(self.traced.nodes[column])
            assert product is not None
            width = shape_of(self.traced.nodes[column])[product.column_dim]
            scale, rest = divmod(width, sum(error.sections))
            wanted = tuple(size * scale for size in error.sections)
            known = self.sections.get(column, (width,))
            if rest or len(wanted) <= len(known):
                continue
            self.finer[column] = wanted
            asked = True
        return asked

    def _take(self, index: int, node: Node, step: Step, origins: frozenset[int]) -> None:
        self.steps[node] = step
        row = step.out if isinstance(step.out, tuple) else (step.out,)
        if any(part is not None for part in row):
            self.layouts[node] = step.out
        if step.kind in ("row", "loss", "logits"):
            self.finished |= origins
        elif step.kind == "column":
            self.origins[node] = frozenset({index})
        elif any(part is not None and part.region == "columns" for part in row):
            self.origins[node] = origins

    def unfinished(self) -> set[int]:
        """Columns whose parts end in no second product and no loss."""
        started = {i for i in self.chosen if self.traced.nodes[i] in self.steps}
        return self.chosen - (started & self.finished)

    def check_weights(self) -> None:
        """A weight that several ops read is cut in one way or not at all."""
        uses: dict[str, dict[Node, Part | None]] = {}
        for node in self.traced.nodes:
            step = self.steps.get(node)
            for operand in node.all_input_nodes:
                if operand.op == "get_attr":
                    part = step.needs.get(operand) if step is not None else None
                    cut = part if part is not None and part.region == "columns" else None
                    attribute = str(operand.target)
                    name = self.traced.parameter_names.get(attribute, attribute)
                    uses.setdefault(name, {})[node] = cut
        for name, row in uses.items():
            if len(set(row.values())) > 1:
                for node, part in row.items():
                    if part is not None:
                        why = f"{name} is read in different parts"
                        self._conflict(node, self.origins.get(node, self._origins(node)), why)

    def _sequence(self, shape: tuple[int, ...]) -> Part | None:
        """The part of a value that has the sequence in dimension 1, or in 0 with the batch."""
        length, batch = self.length, self.traced.batch
        if not length or length % self.count or len(shape) < 2:
            return None
        if len(shape) > 2 and shape[1] == length and shape[0] in (1, batch):
            return Part(dim=1, sections=(length,), region="sequence")
        if len(shape) == 2 and shape[0] == batch * length:
            return Part(dim=0, sections=(length,) * batch, region="sequence")
        return None

    def _step(self, index: int, site: Site) -> Step | None:
        """The step of an op; ``None`` if it is run whole."""
        product = product_of(site.node)
        if site.region is None or (index in self.chosen and site.region == "sequence"):
            return self._of_whole(index, site)
        if product is not None:
            return on_part(site, product, self._sequence(site.shape))
        if site.region == "columns" and site.name in LOSSES:
            return _loss(site)
        if site.name == "embedding":
            raise UndividableError("an embedding of a part")
        if site.name in ("log_softmax", "_log_softmax") and site.region == "columns":
            step = _classes(site)
            if step is not None:
                return step
        rule = RULES.get(site.name)
        if rule is None:
            if not is_elementwise(site.node):
                raise UndividableError(f"{site.name} needs the whole")
            rule = pointwise
        return rule(site)

    def _of_whole(self, index: int, site: Site) -> Step | None:
        product = product_of(site.node)
        if index in self.chosen:
            if product is None:
                raise UndividableError(f"{site.name} computes its weight")
            width = site.shape[product.column_dim]
            return columns(
                site,
                product,
                self.sections.get(index, (width,)),
                padded=index in self.split.vocabularies,
            )
        if site.name == "embedding":
            layout = self._sequence(site.shape)
            if index in self.embeddings:
                return embedding_columns(site, layout)
            if layout is not None and index not in self.traced.replicated:
                return embedding_on_part(site, layout)
        return None


def _classes(site: Site) -> Step | None:
    """``log_softmax`` over the divided dimension, which then is the vocabulary."""
    source = site.node.args[0]
    part = site.only(source)
    dim = site.argument(1, "dim")
    if wrap(int(dim), len(site.shape)) != part.dim:
        return None
    if len(part.sections) != 1:
        raise UndividableError("classes in several sections")
    return Step(out=part, kind="classes")


def _loss(site: Site) -> Step:
    """A loss whose classes are divided."""
    logits, target = site.node.args[0], site.node.args[1]
    part = site.only(logits)
    if part.dim != (1 if len(shape_of(logits)) > 1 else 0) or len(part.sections) != 1:  # type: ignore[arg-type]
        raise UndividableError("a loss over the divided dimension")
    weighted = site.argument(2, "weight") is not None
    of_probabilities = isinstance(target, Node) and target.meta["val"].is_floating_point()
    return Step(out=None, kind="logits" if weighted or of_probabilities else "loss")
