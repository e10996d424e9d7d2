"""What the two graph paths do with weights of a divided graph."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch

from autopar.executor.division.editor import Divided
from autopar.executor.gradients import reduce_gradients
from autopar.executor.mesh_groups import MeshGroups
from autopar.executor.traffic import Traffic


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
