"""All duels, and the page about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autopar.core.io import read_document, write_document
from autopar.core.provenance import provenance
from autopar.core.stats import median
from autopar.validation.overhead.duels import BY_HAND, SIZES, TIMELINE, Duel, Size
from autopar.validation.overhead.measure import fight
from autopar.validation.overhead.row import Row

Rows = dict[str, list[Row]]
"""Heading of a table -> its rows."""

_SCHEMA, _VERSION = "autopar.overhead", 1
_TABLES: dict[str, tuple[Duel, ...]] = {"by hand": BY_HAND, "timeline": TIMELINE}
_PAGE = """# Overhead over hand-written torch

Made by `scripts/overhead` (autopar {autopar}, torch {torch}, {system}, {cpus} CPUs): two ranks on
gloo, one thread each, float32, AdamW. Both sides live in the same processes, start from the same
weights, take the same batches and must get the same losses. They take turns in blocks of steps
(ours, theirs, theirs, ours); each of at least {pairs} such rounds gives one ratio of median step
times. The garbage collector is held back for both. The hand-written code is
`autopar/validation/overhead/handwritten.py`.

{sizes}

## Our step beside a hand-written one

| size | plan | ours, ms | by hand, ms | ratio | 10-90 % | fastest | CPU time | losses differ by |
|---|---|---|---|---|---|---|---|---|
{by_hand}

A ratio above {bound} is in bold; ± is its standard error, large where other processes used the
machine. Two figures that these disturb less:
*fastest* is the ratio of the fastest steps (lower quartile over the pairs), *CPU time* that of
what both ranks computed, waiting not counted.

- **DDP**: `DistributedDataParallel` without buffer broadcasts and with gradients as views of its
  buckets.
- **FSDP2**: `fully_shard` on every block and on the model, which runs on gloo as it is. **FSDP2,
  tuned by hand** also has what our plans have on gloo: a reduce-scatter as an exchange and a local
  sum (gloo's own sends twice the bytes), gathers by futures, and explicit prefetching. These need
  private names of torch and a class of one's own.
- **1F1B**: `torch.distributed.pipelining` with two stages cut by hand at the same block, four
  microbatches, and an all-reduce of the tied embedding's gradient.
- **own loop**: `autopar.parallelize` beside DDP; both return the mean loss over replicas at every
  step.

- **autopar run**: the whole loop of `autopar run` beside a hand-written one with DDP. Both make
  each batch in the loop and tell every rank the mean loss. Ours also exchanges step times.

## What the timeline costs

`autopar run` takes times around every action of a step. The same step with and without:

| size | plan | with, ms | without, ms | ratio | 10-90 % | fastest | CPU time |
|---|---|---|---|---|---|---|---|
{timeline}

A session of `autopar.parallelize` takes no times: nobody can ask it for a timeline.
"""


def measure(sizes: Sequence[Size], pairs: int, file: Path) -> Iterator[str]:
    """Run the duels of some sizes that a file has no rows of yet, and add them to it.

    Args:
        sizes: Of the model.
        pairs: Rounds of each duel.
        file: Keeps the rows, so that a run that was ended goes on where it was.

    Yields:
        A line about each.
    """
    rows = load(file)
    for size in sizes:
        for title, duels in _TABLES.items():
            for duel in duels:
                if any((row.size, row.duel) == (size.name, duel.name) for row in rows[title]):
                    continue
                row = fight(duel, size, pairs=pairs)
                rows[title].append(row)
                body = {key: [asdict(row) for row in found] for key, found in rows.items()}
                write_document(file, _SCHEMA, _VERSION, {"rows": body})
                yield f"{size.name} {duel.name} ({title}): {row.ratio:.3f} | {_spread(row)}"


def load(file: Path) -> Rows:
    """The rows of a file; none if there is no file."""
    if not file.exists():
        return {title: [] for title in _TABLES}
    body = read_document(file, _SCHEMA, _VERSION)["rows"]
    return {title: [_row(fields) for fields in body[title]] for title in _TABLES}


def _row(fields: dict[str, Any]) -> Row:
    """JSON has no tuples."""
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return Row(**given)


def page(rows: Rows) -> str:
    """The page as Markdown."""
    order = [size.name for size in SIZES]
    rows = {title: sorted(r, key=lambda row: order.index(row.size)) for title, r in rows.items()}
    pairs = min(len(row.ratios) for found in rows.values() for row in found)
    here = provenance()
    by_hand = [
        f"| {_start(row)} | {_spread(row)} | {row.loss_difference:.0e} |"
        for row in rows["by hand"]
    ]
    measured = {row.size for found in rows.values() for row in found}
    return _PAGE.format(
        autopar=here["autopar"],
        torch=here["packages"]["torch"],
        system=here["system"],
        cpus=here["cpu_count"],
        pairs=pairs,
        sizes=_sizes(size for size in SIZES if size.name in measured),
        by_hand="\n".join(by_hand),
        timeline="\n".join(f"| {_start(row)} | {_spread(row)} |" for row in rows["timeline"]),
        bound=BY_HAND[0].bound,
    )


def _sizes(sizes: Iterable[Size]) -> str:
    return "\n".join(
        f"- **{s.name}**: `{s.target}`, {s.samples} samples per microbatch: {s.note}"
        for s in sizes
    )


def _start(row: Row) -> str:
    ratio = f"{row.ratio:.3f} ± {row.uncertainty:.3f}"
    return (
        f"{row.size} | {row.duel} | {median(row.ours_s) * 1e3:.2f} | "
        f"{median(row.theirs_s) * 1e3:.2f} | {ratio if row.good else f'**{ratio}**'}"
    )


def _spread(row: Row) -> str:
    spread = f"{row.quantile(0.1):.3f}-{row.quantile(0.9):.3f}"
    return f"{spread} | {row.fastest_ratio:.3f} | {row.cpu_ratio:.3f}"
