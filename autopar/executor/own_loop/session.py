"""A plan inside the user's own training loop."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from autopar.core.errors import GateError, InputError
from autopar.executor.checkpointing.checkpoint import Checkpoints
from autopar.executor.checkpointing.whole_model import WholeModel
from autopar.executor.lowering import lower
from autopar.executor.measuring.clock import Silent
from autopar.executor.optimizing.clipping import clip
from autopar.executor.options import RunOptions
from autopar.executor.own_loop.given import GivenModel, copied, share_weights
from autopar.executor.own_loop.joining import join
from autopar.executor.own_loop.options import SessionOptions
from autopar.executor.own_loop.samples import check_samples, cut, samples_of
from autopar.executor.random_state import seed_generators
from autopar.executor.server.roles import server_sync
from autopar.executor.session import make_context, step_seed
from autopar.executor.verifying.verify import verify
from autopar.plans import Plan
from autopar.results import VerifyResult
from autopar.sync import parse_sync
from autopar.sync.modes.local import PostLocalSgd
from autopar.tasks import Task
from autopar.trace import build_model

_NO_END = sys.maxsize
"""Steps that will be done, when the script does not tell."""


class Session:
    """One rank's side of a plan in the user's own loop; every rank makes the same calls.

    A call of :meth:`step` is one optimizer step. For finer control call
    :meth:`forward_backward`, then :meth:`clip` if wanted, then :meth:`optimizer_step`.

    Dropout draws from a generator state of the session's own, which depends on the plan's seed,
    the step and the rank's place; the script's random numbers are left alone.

    Args:
        plan: The plan.
        task: Model, loss, optimizer; its batch is an example.
        options: How to join and what to check.

    Raises:
        InputError: Plan, task and processes do not fit each other.
        GateError: The plan's step is not that of one process.
        EnvironmentUnableError: Too few CUDA devices.
    """

    def __init__(self, plan: Plan, task: Task, options: SessionOptions) -> None:
        if server_sync(plan) is not None:
            raise InputError(
                f"plan {plan.name} needs parameter servers, which a script cannot start",
                hint="run it with `autopar run`, or plan with --sync all_reduce",
            )
        if isinstance(parse_sync(plan.sync).mode, PostLocalSgd) and options.steps is None:
            raise InputError(
                f"plan {plan.name} changes its sync mode after a share of all steps",
                hint="tell parallelize how many the loop takes: steps=1000",
            )
        if options.clip_norm is not None:
            plan = replace(plan, clip_norm=options.clip_norm)
        joined = join(plan, device=options.device, timeout_s=options.timeout_s)
        self._made_group = joined.made_here
        self._open = True
        try:
            self._build(plan, task, joined.device, options)
        except BaseException:
            self._leave()
            raise

    def _build(
        self, plan: Plan, task: Task, device: torch.device, options: SessionOptions
    ) -> None:
        self.plan = plan
        self.device = device
        self._steps = 0
        self._stop = options.steps or _NO_END
        self._ready = False
        self._loss: float | None = None
        self._verified: VerifyResult | None = None
        with self._own_randomness():
            model = build_model(task, seed=plan.seed)
            first = copied(model) if options.verify else None
            self._context = make_context(
                plan,
                replace(task, model=GivenModel(model, first)),
                device,
                node_size=options.node_size
                or int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
                or None,
                recorder=Silent(),  # nobody can ask a session for a timeline
            )
            groups = self._context.groups
            self._rank, self._replica = groups.rank, groups.replica
            self._warnings = self._context.warnings
            share_weights(model, groups)
            if first is not None:
                first.load_state_dict(model.state_dict())
            self._whole = WholeModel(model)
            self._lowering = lower(self._context)
            if options.verify:
                self._verify(options.tolerance)
            self._lowering.synchroniser.begin(0, self._stop)

    def _verify(self, tolerance: float | None) -> None:
        found = verify(self._context, self._lowering, tolerance)
        self._verified = found
        if not found.passed:
            raise GateError(
                f"verify failed: loss off by {found.loss_rel:.2e}, gradients "
                f"{found.grad_rel:.2e}, weights {found.weight_rel:.2e}, buffers "
                f"{found.buffer_rel:.2e}; bound {found.tolerance:.0e}",
                hint="random numbers of the model's own cannot be matched; dropout can",
            )

    @contextmanager
    def _own_randomness(self, seed: int | None = None) -> Iterator[None]:
        """A context whose random numbers leave the script's generators as they were."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            if seed is not None:
                seed_generators(seed, self.device)
            yield

    # who and where

    @property
    def rank(self) -> int:
        """The plan's rank that this process is."""
        return self._rank

    @property
    def replica(self) -> int:
        """Which part of the global batch this rank trains on; ranks of one replica share it."""
        return self._replica

    @property
    def replicas(self) -> int:
        """Number of replicas."""
        return self.plan.mesh.replicas

    @property
    def is_last(self) -> bool:
        """True on ranks that run the last stage, where the loss is computed."""
        return self.plan.stages[-1].pp == self.plan.mesh.coordinates(self._rank)["pp"]

    @property
    def samples(self) -> int:
        """Samples that this replica takes at each step."""
        return samples_of(self.plan, self._replica)

    @property
    def steps(self) -> int:
        """Optimizer steps done, those before a loaded checkpoint included."""
        return self._steps

    @property
    def loss(self) -> float | None:
        """Mean loss over the global batch of the last :meth:`step`, the same on every rank."""
        return self._loss

    @property
    def verified(self) -> VerifyResult | None:
        """What the comparison with one process found, if asked for."""
        return self._verified

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was skipped or assumed on this rank."""
        return tuple(self._warnings)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer of the weights this rank holds; ``None`` if it holds none."""
        self._check_open()
        return self._lowering.optimizer

    @property
    def scheduler(self) -> torch.optim.lr_scheduler.LRScheduler | None:
        """The learning-rate scheduler, stepped with the optimizer; ``None`` without one."""
        self._check_open()
        return self._lowering.scheduler

    # training

    def part(self, inputs: Any, target: Any) -> tuple[Any, Any]:
        """This replica's samples of a global batch, as the plan's data split shares them out.

        Args:
            inputs: Of all replicas, ``plan.global_batch`` samples, the same on every rank.
            target: The same.

        Raises:
            InputError: Another number of samples.
        """
        self._check_open()
        check_samples(
            (inputs, target), self.plan, self.replica, self.plan.global_batch, "the global batch"
        )
        if not self._context.data.splits_any_batch:
            raise InputError(
                f"data split '{self.plan.data_split}' goes by the lengths of a dataset's samples",
                hint="choose this replica's samples yourself, or plan with data_split random",
            )
        rows = self._context.data.positions(self._steps, self.replica)
        chosen: tuple[Any, Any] = pytree.tree_map_only(
            torch.Tensor, lambda t: t[rows.to(t.device)], (inputs, target)
        )
        return chosen

    def step(self, inputs: Any, target: Any) -> float:
        """One optimizer step: forward, backward, synchronisation, clipping, update, scheduler.

        Args:
            inputs: This replica's samples, :attr:`samples` of them on dimension 0 of every
                tensor; the same on all ranks of a replica. A tensor, a tuple (positional
                arguments of the model) or a dict (keyword arguments).
            target: What the loss compares with.

        Returns:
            Mean loss over the global batch, on every rank.

        Raises:
            InputError: Wrong number of samples.
        """
        loss = self.forward_backward(inputs, target)
        self.optimizer_step()
        self._loss = self._context.groups.mean_loss(loss)
        return self._loss

    def forward_backward(self, inputs: Any, target: Any) -> torch.Tensor | None:
        """Forward, backward and synchronisation of gradients; no update.

        Afterwards the gradients are those of the mean loss over the global batch.

        Returns:
            Mean loss of this replica where it is known (:attr:`is_last`), else ``None``.

        Raises:
            InputError: Wrong number of samples, or the last gradients were not used yet.
        """
        self._check_open()
        if self._ready:
            raise InputError(
                "forward_backward was called twice before optimizer_step",
                hint="to accumulate gradients give the plan more microbatches",
            )
        microbatches = cut((inputs, target), self.plan, self.replica, self.device)
        with self._own_randomness(step_seed(self._context, self._steps)):
            loss = self._lowering.step_gradients(microbatches)
        self._ready = True
        return loss

    def clip(self, max_norm: float) -> float:
        """Scale gradients so that their norm over the whole model is at most ``max_norm``.

        Returns:
            The norm before.

        Raises:
            InputError: There are no gradients, or the norm is not positive.
        """
        self._check_ready("clip")
        if not max_norm > 0:
            raise InputError(f"max_norm={max_norm!r} must be positive")
        return clip(self._lowering, max_norm)

    def optimizer_step(self) -> None:
        """Clip by ``plan.clip_norm`` if set, update weights, step the scheduler, clear gradients.

        Raises:
            InputError: There are no gradients.
        """
        self._check_ready("optimizer_step")
        self._lowering.advance()
        self._ready = False
        self._steps += 1

    # saving

    def save(self, folder: Path | str) -> Path:
        """Write ``folder/step-N`` and name it in ``folder/latest`` (collective).

        Any plan of the same model can load it, in :meth:`load` or with ``autopar run --resume``.

        Returns:
            The folder of this checkpoint.
        """
        return self._checkpoints(folder).save(self._steps)

    def load(self, folder: Path | str) -> int:
        """Continue from a checkpoint (collective).

        Args:
            folder: One that :meth:`save` wrote to, or one ``step-N`` in it.

        Returns:
            Optimizer steps done before it was saved.

        Raises:
            InputError: No complete checkpoint there, or one of another model.
        """
        if self._lowering.scheduler is not None and self._steps:
            self._lowering.reset_optimizer()
        self._steps = self._checkpoints(folder).resume()
        self._lowering.synchroniser.begin(self._steps, self._stop)
        return self._steps

    def _checkpoints(self, folder: Path | str) -> Checkpoints:
        self._check_open()
        if self._ready:
            raise InputError(
                "gradients wait for optimizer_step", hint="save and load between steps"
            )
        options = RunOptions(out=Path(folder), checkpoint_dir=Path(folder), resume=Path(folder))
        return Checkpoints(self._context, self._lowering, options)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The whole model's ``state_dict`` on the CPU of rank 0, empty elsewhere (collective).

        ``model.load_state_dict`` of the unchanged model takes it.
        """
        self._check_open()
        with self._lowering.synchroniser.settled():
            return self._whole.gather(self._lowering)

    # end

    def close(self) -> None:
        """Wait for the other ranks and end the process group if the session made it.

        Replicas that trained apart for a while (local SGD) are one model again afterwards.
        """
        if self._open:
            self._lowering.synchroniser.finish()
            self._lowering.synchroniser.close()
            dist.barrier(group=self._context.groups.control)
            self._leave()

    def _leave(self) -> None:
        """End the process group, and let go of it here and now.

        A gloo group joins its threads when it is collected. In a process forked later, such as a
        loader's worker, those threads do not exist and the collector would wait forever.
        """
        self._open = False
        for name in ("_lowering", "_context"):
            if hasattr(self, name):  # building may have failed before
                delattr(self, name)
        if self._made_group and dist.is_initialized():
            dist.destroy_process_group()
            gc.collect()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:  # the others may never come to a barrier
            self._leave()

    # checks

    def _check_ready(self, what: str) -> None:
        self._check_open()
        if not self._ready:
            raise InputError(f"{what} needs gradients", hint="call forward_backward first")

    def _check_open(self) -> None:
        if not self._open:
            raise InputError("the session is closed", hint="make another with parallelize")
