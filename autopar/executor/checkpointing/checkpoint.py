"""Checkpoints that any plan of the same model can continue from.

A checkpoint is a folder ``step-N`` written by torch.distributed.checkpoint under the model's own
parameter names, so that a pipeline can continue what replicas began and the other way round:

- ``model.NAME``: parameters, and buffers that training writes;
- ``optimizer.NAME.KEY``: optimizer state of a parameter;
- ``sync.RANK.KEY``: what the sync mode keeps of one rank, read back under the same mode and mesh;
- ``autopar.json``: step, seed, plan hash, task, global batch, learning rates, optimizer state
  that is no tensor. A scheduler is a function of the number of steps: it is brought to the step
  by stepping a fresh one, whatever parameter groups the new plan's ranks have.

It is written as ``step-N.tmp``, renamed when complete, and then named in ``latest``, which is
replaced by a rename too: a run that dies at any moment leaves the newest complete one to find.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, Replicate

from autopar.core.errors import InputError
from autopar.core.io import read_document, write_document, write_text_atomic
from autopar.executor.checkpointing.parts import joined, own_part, whole_shape
from autopar.executor.checkpointing.reader import (
    LATEST,
    NOTES,
    SafeReader,
    find_checkpoint,
)
from autopar.executor.lowering import Context, Lowering
from autopar.executor.optimizing.gradients import local
from autopar.executor.optimizing.host_optimizer import like_parameter
from autopar.executor.optimizing.learning_rate import learning_rates, replay
from autopar.executor.options import RunOptions

SCHEMA = "autopar.checkpoint"
SCHEMA_VERSION = 1
_SYNC = "sync."
Tensors = Mapping[str, torch.Tensor]
NOTHING: Tensors = MappingProxyType({})


class Checkpoints:
    """Saves and restores one run.

    Args:
        context: The run.
        lowering: What is trained.
        options: Where and how often to save, and what to continue from.
    """

    def __init__(self, context: Context, lowering: Lowering, options: RunOptions) -> None:
        self._context = context
        self._lowering = lowering
        self._options = options

    def after_step(self, step: int) -> bool:
        """Save when it is time; ``step`` optimizer steps are done. Returns whether it did."""
        every = self._options.checkpoint_every
        due = bool(every) and step % every == 0
        if due:
            self.save(step)
        return due

    def save(self, step: int) -> Path:
        """Write ``step-N`` and point ``latest`` at it.

        Collective, but for independent ranks: rank 0 writes alone what the servers hold, and its
        own buffers.
        """
        servers = self._lowering.servers
        if servers is None:
            synchroniser, rank = self._lowering.synchroniser, self._context.groups.rank
            own = {f"{_SYNC}{rank}.{key}": t for key, t in synchroniser.state().items()}
            with synchroniser.settled():
                return self._save_together(step, own)
        if self._lowering.independent and dist.get_rank():
            return self._options.checkpoints / f"step-{step}"
        servers.settle()
        alone = self._lowering.independent
        folder = self._save_alone(step) if alone else self._save_together(step)
        servers.release()
        return folder

    def _save_alone(self, step: int) -> Path:
        folder = self._options.checkpoints / f"step-{step}"
        partial = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        tensors, values = self._state()
        save(tensors, checkpoint_id=partial, no_dist=True)
        self._complete(partial, folder, step, values)
        return folder

    def _save_together(self, step: int, own: Tensors = NOTHING) -> Path:
        control = self._context.groups.control
        folder = self._options.checkpoints / f"step-{step}"
        partial = folder.with_name(folder.name + ".tmp")
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier(group=control)
        tensors, values = self._state()
        save({**tensors, **own}, checkpoint_id=partial, process_group=control)
        everyones: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyones, values, group=control)
        if dist.get_rank() == 0:
            merged = {key: value for part in everyones for key, value in part.items()}
            self._complete(partial, folder, step, merged)
        dist.barrier(group=control)
        return folder

    def _complete(self, partial: Path, folder: Path, step: int, values: dict[str, Any]) -> None:
        """All tensors are written: name the folder and point at it."""
        self._write_notes(partial, step, values)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
        write_text_atomic(folder.parent / LATEST, folder.name + "\n")

    def _write_notes(self, folder: Path, step: int, values: dict[str, Any]) -> None:
        plan = self._context.plan
        body = {
            "step": step,
            "seed": plan.seed,
            "global_batch": plan.global_batch,
            "sampler": self._context.task.sampler,
            "plan": plan.hash,
            "plan_name": plan.name,
            "sync": plan.sync,
            "mesh": plan.mesh.to_dict(),
            "task": plan.task.name,
            "fingerprint": plan.task.fingerprint,
            "optimizer_values": values,
            "learning_rates": learning_rates(self._lowering.optimizer),
            "loss_scale": None if self._lowering.scale is None else self._lowering.scale.state(),
        }
        write_document(folder / NOTES, SCHEMA, SCHEMA_VERSION, body)

    def _state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors by key, and optimizer state that is no tensor."""
        lowering = self._lowering
        weights = {**lowering.parameters, **lowering.buffers}
        tensors = {
            f"model.{name}": joined(lowering, name, tensor) for name, tensor in weights.items()
        }
        values: dict[str, Any] = {}
        states = lowering.states
        for name, parameter in lowering.parameters.items():
            for key, value in states.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer.{name}.{key}"] = self._joined(name, value)
                else:
                    values[f"optimizer.{name}.{key}"] = value
        return tensors, values

    def _joined(self, name: str, state: torch.Tensor) -> torch.Tensor:
        """State as it is saved; parts meet on the device, whose group they travel in."""
        if not self._lowering.cuts.get(name):
            return joined(self._lowering, name, state)
        there = state.to(self._context.device)
        return joined(self._lowering, name, there).to(state.device)

    def resume(self) -> int:
        """Load what the options name; returns the number of steps done before (0 if none).

        Raises:
            InputError: No complete checkpoint there, or one of another model or seed.
        """
        if self._options.resume is None:
            return 0
        folder = find_checkpoint(self._options.resume)
        notes = read_document(folder / NOTES, SCHEMA, SCHEMA_VERSION)
        self._check_notes(folder, notes)
        reader = SafeReader(folder)
        stored = reader.read_metadata().state_dict_metadata
        target = self._targets(folder, stored)
        own = self._own_targets(folder, stored, notes)
        load({**target, **own}, storage_reader=reader, process_group=self._context.groups.control)
        self._take_parts(target)
        self._lowering.weights_written()
        self._fill_optimizer(target, notes["optimizer_values"])
        if own:
            prefix = f"{_SYNC}{self._context.groups.rank}."
            self._lowering.synchroniser.load_state(
                {key.removeprefix(prefix): tensor for key, tensor in own.items()}
            )
        if self._lowering.scale is not None and notes.get("loss_scale"):
            self._lowering.scale.restore(notes["loss_scale"])
        step = int(notes["step"])
        self._resume_scheduler(folder, step, notes.get("learning_rates"))
        return step

    def _resume_scheduler(self, folder: Path, step: int, before: list[float] | None) -> None:
        """Bring the scheduler to the step; what it says then should be what it said before."""
        lowering = self._lowering
        if lowering.scheduler is None or lowering.optimizer is None:
            return
        replay(lowering.scheduler, step)
        now = learning_rates(lowering.optimizer)
        if before and len(before) == len(now) and not all(map(math.isclose, before, now)):
            self._context.warnings.append(
                f"learning rates were {before} when {folder.name} was saved and are {now} now: "
                "the scheduler or the optimizer was changed"
            )

    def _check_notes(self, folder: Path, notes: dict[str, Any]) -> None:
        plan = self._context.plan
        if notes["fingerprint"] != plan.task.fingerprint:
            raise InputError(
                f"{folder} is a checkpoint of '{notes['task']}' (fingerprint "
                f"{notes['fingerprint']}), the plan is for '{plan.task.name}' "
                f"(fingerprint {plan.task.fingerprint})",
                hint="resume from a checkpoint of the same model",
            )
        now_by_key = {
            "seed": plan.seed,
            "global_batch": plan.global_batch,
            "sampler": self._context.task.sampler,
        }
        for key, now in now_by_key.items():
            if notes.get(key, now) != now:
                self._context.warnings.append(
                    f"{key} was {notes[key]} when {folder.name} was saved and is {now} now: "
                    "the run goes on with other samples than an uninterrupted one"
                )

    def _own_targets(
        self, folder: Path, stored: dict[str, Any], notes: dict[str, Any]
    ) -> dict[str, torch.Tensor]:
        """Empty tensors for what the sync mode kept of this rank, if it is the same mode now."""
        plan = self._context.plan
        if not any(key.startswith(_SYNC) for key in stored):
            return {}
        if (notes.get("sync"), notes.get("mesh")) != (plan.sync, plan.mesh.to_dict()):
            self._context.warnings.append(
                f"{folder.name} was saved under '{notes.get('sync')}', perhaps on another mesh, "
                f"and goes on under '{plan.sync}': from the mean weights of its replicas, without "
                "what the mode remembered"
            )
            return {}
        prefix = f"{_SYNC}{self._context.groups.rank}."
        return {
            key: torch.empty(
                found.size,
                dtype=found.properties.dtype,
                device=self._own_device(key),
            )
            for key, found in stored.items()
            if key.startswith(prefix)
        }

    def _own_device(self, key: str) -> torch.device:
        """Where a tensor that the sync mode kept belongs."""
        if key.rpartition(".")[2] in _COUNTERS:
            return torch.device("cpu")
        return self._lowering.state_device if ".optimizer." in key else self._context.device

    def _targets(self, folder: Path, stored: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Tensors to load into: own weights in place, empty ones for the optimizer's state."""
        lowering = self._lowering
        target: dict[str, torch.Tensor] = {}
        for name, tensor in {**lowering.parameters, **lowering.buffers}.items():
            found, cuts = stored.get(f"model.{name}"), lowering.cuts.get(name, ())
            shape = whole_shape(cuts, tensor.shape)
            if not isinstance(found, TensorStorageMetadata) or found.size != shape:
                raise InputError(
                    f"{folder} has no '{name}' of shape {list(shape)}",
                    hint="resume from a checkpoint of the same model",
                )
            own = tensor.detach()
            target[f"model.{name}"] = _empty_whole(found, own.device) if cuts else own
        for name, parameter in lowering.parameters.items():
            prefix = f"optimizer.{name}."
            for key, found in stored.items():
                if not key.startswith(prefix) or "." in key[len(prefix) :]:
                    continue
                if lowering.cuts.get(name) and len(found.size):
                    target[key] = _empty_whole(found, lowering.state_device)
                else:
                    target[key] = _empty_state(
                        key[len(prefix) :],
                        found.size,
                        found.properties.dtype,
                        parameter,
                        lowering.state_device,
                    )
        return target

    def _take_parts(self, target: dict[str, torch.Tensor]) -> None:
        """Replace whole tensors that were loaded by this rank's parts of them."""
        lowering = self._lowering
        for name, tensor in {**lowering.parameters, **lowering.buffers}.items():
            if not lowering.cuts.get(name):
                continue
            tensor.detach().copy_(own_part(lowering, name, target[f"model.{name}"], tensor))
            prefix = f"optimizer.{name}."
            for key, value in target.items():
                own = key.startswith(prefix) and "." not in key[len(prefix) :]
                if own and value.dim():
                    part = own_part(lowering, name, value, tensor)
                    target[key] = part.to(lowering.state_device)

    def _fill_optimizer(self, target: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        if self._lowering.optimizer is None:
            return
        known, states = {**target, **values}, self._lowering.states
        states.clear()
        for name, parameter in self._lowering.parameters.items():
            prefix = f"optimizer.{name}."
            state = {
                key[len(prefix) :]: value
                for key, value in known.items()
                if key.startswith(prefix) and "." not in key[len(prefix) :]
            }
            if state:
                states[parameter] = state


_COUNTERS = ("step", "mu_product", "eta", "mu")
"""Scalars that torch's optimizers keep in host memory beside a parameter's own state."""


def _empty_whole(found: TensorStorageMetadata, place: torch.device) -> torch.Tensor:
    """Memory for a whole tensor of which a part will stay."""
    return torch.empty(found.size, dtype=found.properties.dtype, device=place)


def _empty_state(
    key: str,
    size: torch.Size,
    dtype: torch.dtype,
    parameter: torch.Tensor,
    place: torch.device,
) -> torch.Tensor:
    """Memory for optimizer state, shared out like its parameter where they have one shape.

    State of a sharded parameter in another shape (Adafactor's row and column means) is whole on
    each rank, but still a DTensor: torch refuses to mix both kinds.
    """
    if len(size) == 0 and key in _COUNTERS:
        return torch.empty(size, dtype=dtype, device="cpu")
    if not isinstance(parameter, DTensor):
        place = torch.device("cpu") if len(size) == 0 else place
        return torch.empty(size, dtype=dtype, device=place)
    if size == parameter.shape:
        mine = torch.empty_like(local(parameter.detach()), dtype=dtype, device=place)
        return like_parameter(parameter, mine)
    mesh = parameter.device_mesh
    plain = torch.empty(size, dtype=dtype, device=parameter.device)
    return DTensor.from_local(plain, mesh, [Replicate()] * mesh.ndim, run_check=False)
