"""A rank's side of training with parameter servers.

``ps_sync`` pushes after backward and waits for the new weights. The others push and pull beside
the next step: the weights a step starts from are those asked for after the step before the
last, and the server answers only when the bound allows that step.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from autopar.core.errors import InputError, TrainingError
from autopar.executor.optimizing.clipping import clip
from autopar.executor.server.discovery import find, publish
from autopar.executor.server.gang import Gang
from autopar.executor.server.layout import Entry
from autopar.executor.server.optimizers import coupling
from autopar.executor.server.roles import (
    ServerLink,
    independent,
    members,
    server_count,
    server_sync,
)
from autopar.executor.server.tls import worker_context

if TYPE_CHECKING:
    from autopar.executor.lowering import Lowering


@dataclass(kw_only=True)
class Passed:
    """What went between this rank and servers beside others in some of its steps.

    Attributes:
        pushed_bytes: Sent by this rank.
        pulled_bytes: Rank -> bytes that its server sent to this one.
    """

    pushed_bytes: int = 0
    pulled_bytes: Counter[int] = field(default_factory=Counter)


class ServerSynchroniser:
    """Pushes this rank's gradients and takes over the servers' weights.

    Args:
        lowering: What is trained, without any averaging of gradients of its own.
        link: Where the server beside this rank is, and the token.
        store: Of the run.

    Raises:
        InputError: The weights or the optimizer cannot be on servers.
        TrainingError: A server did not start.
    """

    def __init__(self, lowering: Lowering, link: ServerLink, store: Store) -> None:
        self._lowering = lowering
        context = lowering.context
        plan, rank = context.plan, context.groups.rank
        sync = server_sync(plan)
        assert sync is not None
        self._exact = sync.mode.semantics == "exact"
        self.independent = independent(plan, link.options)
        self._members = members(plan, rank)
        self._parameters = {n: p for n, p in lowering.parameters.items() if p.requires_grad}
        self._dtype = _only_dtype(self._parameters)
        entries = [Entry(name=n, shape=tuple(p.shape)) for n, p in self._parameters.items()]
        whole = coupling(context.task.optimizer) == "parameters"
        if whole:
            context.warnings.append(
                "the optimizer looks at whole parameters: servers hold uncut parameters, their "
                "shares are uneven"
            )
        if link.own is not None:
            publish(store, link.own)
        owners = self._members[: server_count(plan, rank)]
        options = link.options
        tls = options.servers.tls
        if tls is None and options.nnodes > 1:
            context.warnings.append(
                "gradients and weights travel between hosts and parameter servers in the clear; "
                "pass --server-tls-cert, --server-tls-key and --server-tls-ca to encrypt them"
            )
        self._gang = Gang(
            [find(store, owner, options.timeout_s) for owner in owners],
            entries,
            rank=rank,
            token=link.token,
            tls=worker_context(tls) if tls is not None else None,
            compression=sync.compression,
            timeout_s=options.timeout_s,
            by_parameter=whole,
        )
        self._background = ThreadPoolExecutor(1, thread_name_prefix="exchange")
        self._under_way: Future[torch.Tensor] | None = None
        self._step = 0
        self._passed: list[Passed] = []
        self._pulled = [torch.empty(0), torch.empty(0)]

    # beginning and end

    def begin(self, step: int) -> None:
        """Give the servers the weights of the first member; collective.

        State that a checkpoint put into the rank's own optimizer goes to the servers.

        Args:
            step: Steps done before.
        """
        self._step, self._under_way, self._passed = step, None, []
        flat = self._flat([p.detach() for p in self._parameters.values()])
        self._pulled = [torch.empty_like(flat), torch.empty_like(flat)]
        optimizer = self._lowering.optimizer
        if self._lowering.context.groups.rank == self._members[0]:
            state = {} if optimizer is None else optimizer.state
            named = {n: state[p] for n, p in self._parameters.items() if p in state}
            share = 1.0 if self._exact else 1.0 / len(self._members)
            self._gang.set_weights(flat, step, share, named)
        else:
            self._gang.next_generation()
        if optimizer is not None:
            optimizer.state.clear()
        self._gang.take_sent_bytes()

    def settle(self) -> None:
        """Take the weights and optimizer state from the servers, to be saved."""
        if not self._exact:
            self.drain()
            into = self._pulled[0]
            self._gang.pull(0, into)  # a step that may always start
            self._install(into)
        optimizer = self._lowering.optimizer
        if optimizer is not None and self._lowering.context.groups.rank == self._members[0]:
            for name, values in self._gang.state().items():
                optimizer.state[self._parameters[name]] = values

    def release(self) -> None:
        """Forget the state that :meth:`settle` fetched."""
        if self._lowering.optimizer is not None:
            self._lowering.optimizer.state.clear()

    def progress_of(self, rank: int) -> str:
        """``lost``, the steps it pushed, or ``unknown``.

        ``gone`` when a server has ended, which it does when every member has left or is lost.
        """
        try:
            rows = self._gang.status()
        except ConnectionRefusedError:
            return "gone"
        except (OSError, TrainingError):
            return "unknown"
        if any(rank in row["lost"] for row in rows):
            return "lost"
        return str([row["clocks"].get(str(rank)) for row in rows])

    def drain(self) -> None:
        """Wait for what is under way and take its weights."""
        self._land(self._under_way)
        self._under_way = None

    def leave(self) -> None:
        """Tell the servers that this rank has finished."""
        self.drain()
        self._background.shutdown()
        self._gang.leave()

    def close(self) -> None:
        """Close the connections."""
        self._gang.close()

    # a step

    def update(self) -> None:
        """Push gradients, install weights, clear gradients."""
        context, step = self._lowering.context, self._step
        clip_norm = context.plan.clip_norm
        if clip_norm is not None and not self._exact:
            clip(self._lowering, clip_norm)
        gradients, absent = self._take_gradients()
        into = self._pulled[step % 2]
        start = context.recorder.mark()
        if self._exact:
            clips = clip_norm is not None
            self._install(self._exchange(step, gradients, absent, into, clips))
        else:
            before = self._under_way
            self._under_way = self._background.submit(
                self._exchange, step, gradients, absent, into, False
            )
            self._land(before)
        context.recorder.add("sync", start)
        if not self.independent:
            context.traffic.sent_bytes += self._gang.take_sent_bytes()
        self._step += 1

    def _exchange(
        self,
        step: int,
        gradients: list[torch.Tensor],
        absent: set[str],
        into: torch.Tensor,
        clips: bool,
    ) -> torch.Tensor:
        """One push and the pull after it; beside the next step unless the mode is exact."""
        flat = self._flat(gradients)
        start = step + 1 if self._exact else step + 2
        gang = self._gang
        sent, received = gang.sent_bytes, gang.received_bytes
        gang.exchange(step, flat, absent, start=start, into=into, clips=clips)
        pulled = Counter(gang.received_bytes)
        pulled.subtract(received)
        self._passed.append(Passed(pushed_bytes=gang.sent_bytes - sent, pulled_bytes=pulled))
        return into

    def passed(self, first: int) -> Passed:
        """What went over between ranks in all exchanges but the ``first`` ones.

        Exchanges run beside steps and end after them, and a server sends to a slow rank when
        the rank beside it has finished: so what belongs to a step is counted where it is pulled.

        Args:
            first: Exchanges since :meth:`begin` that do not count.
        """
        total = Passed()
        for one in self._passed[first:]:
            total.pushed_bytes += one.pushed_bytes
            total.pulled_bytes.update(one.pulled_bytes)
        return total

    def _land(self, flight: Future[torch.Tensor] | None) -> None:
        if flight is not None:
            self._install(flight.result())

    def _take_gradients(self) -> tuple[list[torch.Tensor], set[str]]:
        """This rank's gradients, which the parameters give away, and who has none."""
        gradients, absent = [], set()
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                absent.add(name)
                gradients.append(torch.zeros_like(parameter, requires_grad=False))
            else:
                gradients.append(parameter.grad)
            parameter.grad = None
        return gradients, absent

    def _flat(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([t.reshape(-1) for t in tensors]).to("cpu", self._dtype)

    @torch.no_grad()
    def _install(self, flat: torch.Tensor) -> None:
        sizes = [p.numel() for p in self._parameters.values()]
        for parameter, part in zip(
            self._parameters.values(), torch.split(flat, sizes), strict=True
        ):
            parameter.copy_(part.view(parameter.shape))

    # the check against one process

    def average_for_check(self) -> dict[str, torch.Tensor]:
        """Mean gradients over the members, which a step with servers never has on a rank."""
        group = self._lowering.context.groups.replicate
        found: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                mean = parameter.grad.detach().clone()
                dist.all_reduce(mean, group=group.handle)
                found[name] = mean.div_(group.size)
        return found

    @property
    def reproducible(self) -> bool:
        """True when a step has one right result."""
        return self._exact


def _only_dtype(parameters: dict[str, torch.nn.Parameter]) -> torch.dtype:
    """The type of all parameters.

    Raises:
        InputError: There are several, or none at all.
    """
    dtypes: list[torch.dtype] = sorted({p.dtype for p in parameters.values()}, key=str)
    if len(dtypes) != 1 or not dtypes[0].is_floating_point:
        raise InputError(
            f"parameter servers hold weights of one floating-point type, this model has {dtypes}",
            hint="use another sync mode",
        )
    return dtypes[0]
