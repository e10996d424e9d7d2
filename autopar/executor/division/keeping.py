"""What the two graph paths do with weights of a divided graph."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch

from autopar.executor.division.editor import Divided
from autopar.executor.holding import Cut
from autopar.executor.measuring.traffic import Traffic
from autopar.executor.mesh_groups import MeshGroups
from autopar.executor.optimizing.gradients import reduce_gradients


def keep_parts(divided: Divided, groups: MeshGroups) -> None:
    """Make every weight, buffer and constant of a divided graph this rank's part, in place.

    Call it once, before fragments are extracted: they share the tensors.

    Args:
        divided: The graph after all passes.
        groups: Groups of the axes that cut.
    """
    traced, done = divided.traced, set()
    for node in traced.module.graph.nodes:
        if node.op != "get_attr":
            continue
        attribute = str(node.target)
        name = traced.parameter_names.get(attribute, attribute.removeprefix("model."))
        tensor = operator.attrgetter(attribute)(traced.module)
        if name not in divided.cuts or id(tensor) in done:
            continue
        done.add(id(tensor))
        for cut in divided.cuts[name]:
            group = groups.axis(cut.axis)
            tensor.data = cut.part(tensor.data, group.position, group.size)


def is_expert(cuts: Sequence[Cut]) -> bool:
    """True for a parameter of which ranks of the expert group hold different parts."""
    return any(cut.axis == "ep" for cut in cuts)


def average_over_data(
    parameters: Mapping[str, torch.nn.Parameter],
    cuts: Mapping[str, Sequence[Cut]],
    groups: MeshGroups,
    *,
    bucket_bytes: int,
    traffic: Traffic,
) -> None:
    """Average gradients over data ranks; those of experts over the ranks that hold the same.

    The tokens of an expert group have come to the rank that holds the expert, so its gradient is
    their sum already; it only lacks the division by the size of the expert group.

    Args:
        parameters: Model name -> parameter, those this rank holds.
        cuts: Model name -> cuts.
        groups: The groups.
        bucket_bytes: Bucket size of the all-reduces.
        traffic: Counts what is sent.
    """
    apart = {name for name, own in cuts.items() if is_expert(own)}
    experts = [p for name, p in parameters.items() if name in apart]
    others = [p for name, p in parameters.items() if name not in apart]
    for parameter in experts:
        if parameter.grad is not None:
            parameter.grad.div_(groups.ep.size)
    for members, group in ((others, groups.data), (experts, groups.expert_data)):
        reduce_gradients(members, group, divide=True, bucket_bytes=bucket_bytes, traffic=traffic)


def sum_partial(
    divided_partial: Mapping[str, frozenset[str]],
    parameters: Mapping[str, torch.nn.Parameter],
    groups: MeshGroups,
    *,
    bucket_bytes: int,
    traffic: Traffic,
) -> None:
    """Sum gradients that are terms over an axis: of weights used on a part of the sequence.

    Args:
        divided_partial: ``Divided.partial``.
        parameters: Model name -> parameter, those this rank holds.
        groups: The groups.
        bucket_bytes: Bucket size of the all-reduces.
        traffic: Counts what is sent.
    """
    for axis, names in sorted(divided_partial.items()):
        reduce_gradients(
            [parameter for name, parameter in parameters.items() if name in names],
            groups.axis(axis),
            divide=False,
            bucket_bytes=bucket_bytes,
            traffic=traffic,
        )
