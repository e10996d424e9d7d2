"""``fully_shard`` with this project's mesh, collectives and bookkeeping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from autopar.core.errors import InputError
from autopar.executor.measuring.traffic import Traffic
from autopar.executor.mesh_groups import MeshGroups
from autopar.executor.optimizing.gradients import size_bytes
from autopar.executor.sharding.collectives import (
    CountedAllGather,
    CountedReduceScatter,
    ExchangeReduceScatter,
)
from autopar.executor.sharding.mesh import sharding_mesh
from autopar.executor.sharding.standins import Standins


class Sharder:
    """Puts shards in the place of a rank's weights, module by module, inner ones first.

    Args:
        parameters: Model name -> parameter, all that the rank holds.
        whole: Names of those that must not be shared out; scalars, which cannot be, come to them.
        groups: Process groups; their plan says what is shared out.
        device: Where the shards go.
        traffic: Counts what is sent.
        policy: Precision in which modules are gathered, run and scattered.

    Attributes:
        standins: The parameters that stay whole.
        shards: Model name -> plain parameter that is, or will be, shared out.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        whole: Iterable[str],
        *,
        groups: MeshGroups,
        device: torch.device,
        traffic: Traffic,
        policy: MixedPrecisionPolicy | None = None,
    ) -> None:
        self._mesh = sharding_mesh(groups, device)
        self._zero = groups.plan.zero
        self._policy = policy or MixedPrecisionPolicy()
        self._traffic = traffic
        self._replicas = groups.replicate.size
        self._gloo = dist.get_backend(groups.weight_shard.group) == "gloo"
        apart = {*whole, *(name for name, p in parameters.items() if p.ndim == 0)}
        self.standins = Standins({n: p for n, p in parameters.items() if n in apart}, self._mesh)
        self.shards = {n: p for n, p in parameters.items() if n not in apart}
        self._order = tuple(parameters)
        self._everything = set(parameters.values())
        for parameter in self.shards.values():
            if not parameter.is_contiguous():  # fully_shard wants it so
                parameter.data = parameter.data.contiguous()

    def places(self, root: torch.nn.Module) -> dict[str, str]:
        """Model name -> a place in the module tree, which keeps when the parameter is replaced."""
        names = {parameter: name for name, parameter in self.shards.items()}
        return {names[p]: place for place, p in root.named_parameters() if p in names}

    def parameters(
        self, root: torch.nn.Module, places: Mapping[str, str]
    ) -> dict[str, torch.nn.Parameter]:
        """Model name -> what the optimizer updates, once everything is wrapped."""
        return {
            name: root.get_parameter(places[name])
            if name in places
            else self.standins.parameters[name]
            for name in self._order
        }

    def wrap(
        self, module: torch.nn.Module, own: Sequence[torch.nn.Parameter], *, keeps: bool = False
    ) -> FSDPModule:
        """Share out some of a module's weights, and drop the whole ones.

        Args:
            module: Runs as one unit.
            own: Its weights.
            keeps: What forward gathered stays for backward, whatever is shared out.

        Raises:
            InputError: They have several dtypes.
        """
        self._check_dtypes(own)
        wrapped = fully_shard(
            module,
            mesh=self._mesh,
            reshard_after_forward=self._zero == 3 and not keeps,
            mp_policy=self._policy,
            ignored_params=self._everything - set(own),
        )
        for parameter in own:  # the model and its graph still refer to them
            parameter.data = torch.empty(0, dtype=parameter.dtype)
        self._set_collectives(wrapped)
        return wrapped

    def _check_dtypes(self, own: Sequence[torch.nn.Parameter]) -> None:
        """FSDP2 gathers and scatters the trained weights of a unit as one flat tensor."""
        first: dict[torch.dtype, torch.nn.Parameter] = {}
        for parameter in own:
            if parameter.requires_grad:
                first.setdefault(parameter.dtype, parameter)
        if len(first) > 1:
            names = {parameter: name for name, parameter in self.shards.items()}
            listed = ", ".join(f"'{names[p]}' in {dtype}" for dtype, p in first.items())
            raise InputError(
                f"weights of one unit have several dtypes ({listed}), FSDP2 shards one at a time",
                hint="give the model's weights one dtype, or plan without dp_shard",
            )

    def _set_collectives(self, module: FSDPModule) -> None:
        traffic, replicas = self._traffic, self._replicas

        def count_all_reduce(shard: torch.Tensor) -> None:
            traffic.all_reduce(size_bytes([shard]), replicas)

        module.set_custom_all_gather(CountedAllGather(traffic))
        module.set_custom_reduce_scatter(
            ExchangeReduceScatter(traffic) if self._gloo else CountedReduceScatter(traffic)
        )
        if replicas > 1:
            module.set_all_reduce_hook(count_all_reduce)
        if self._gloo:
            # gloo cannot scale inside a collective (PREMUL_SUM), so FSDP2 divides afterwards
            module.set_force_sum_reduction_for_comms(True)
            # FSDP2 overlaps gathers by CUDA streams; on the CPU by asking for futures
            module._set_unshard_async_op(True)
