"""The stage runner: executes a schedule's own action list on one pipeline rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from autopar.executor.measuring.clock import Recorder
from autopar.executor.measuring.traffic import Traffic
from autopar.executor.precision import wide
from autopar.executor.stages.mailbox import LOOKAHEAD, Channels, Mailbox, Message
from autopar.executor.stages.routes import Route, Routes
from autopar.executor.stages.tape import Tape
from autopar.schedules import Action

Leaves = Sequence[torch.Tensor]


class Runnable(Protocol):
    """A stage as the runner calls it: a :class:`~.stage.StageProgram` or alike.

    Attributes:
        exports: Op indices of what it hands on.
    """

    exports: tuple[int, ...]

    def forward(
        self, leaves: Leaves, imports: dict[int, torch.Tensor], microbatch: int
    ) -> dict[int, torch.Tensor]:
        """Op index -> value, for the exports."""
        ...

    def keep(
        self, leaves: Leaves, imports: dict[int, torch.Tensor], microbatch: int
    ) -> tuple[dict[int, torch.Tensor], Tape]:
        """The same for a backward in two halves, with what backward needs."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Who runs what when, in one replica.

    Attributes:
        actions: Pipeline coordinate -> its actions in order.
        placement: Virtual stage -> pipeline coordinate.
        ranks: Pipeline coordinate -> global rank.
        me: Pipeline coordinate of this rank.
        microbatches: Microbatches per step.
        ahead: Actions of a sending rank whose messages are received before they are needed.
    """

    actions: Sequence[Sequence[Action]]
    placement: Sequence[int]
    ranks: Sequence[int]
    me: int
    microbatches: int
    ahead: int = LOOKAHEAD


class Runner:
    """Forward and backward of one step on one pipeline rank.

    A value goes straight from the stage that makes it to each stage that reads it; its gradient
    comes back the same way and is summed over the readers. Stages on the same rank hand values
    over without copying. In a narrow precision float32 values travel in it and are widened again.

    Args:
        programs: Virtual stage -> program, for the stages of this rank.
        routes: All routes.
        pipeline: Who runs what when.
        channels: Process group per direction and pair, for backends without tags.
        device: Where values are.
        recorder: Takes the times.
        traffic: Counts what is sent.
        before_backward: ``(stage, microbatch)``, called before each backward.
    """

    def __init__(
        self,
        *,
        programs: Mapping[int, Runnable],
        routes: Routes,
        pipeline: Pipeline,
        channels: Channels,
        device: torch.device,
        recorder: Recorder,
        traffic: Traffic,
        before_backward: Callable[[int, int], object] | None = None,
    ) -> None:
        self._scale = 1.0
        self._before_backward = before_backward
        self._programs = programs
        self._pipeline = pipeline
        self._actions = pipeline.actions[pipeline.me]
        self._microbatches = pipeline.microbatches
        self._recorder = recorder
        self._into = {stage: routes.into(stage) for stage in programs}
        self._out_of = {stage: routes.out_of(stage) for stage in programs}
        self._last_stage = len(pipeline.placement) - 1
        self._device = device
        self._weights: Sequence[float] = ()
        self._splits = any(a.kind == "backward_input" for a in self._actions)
        self._gradient_kind = "backward_input" if self._splits else "backward"
        self._position: dict[tuple[str, int, int], int] = {
            (a.kind, a.stage, a.microbatch): i
            for row in pipeline.actions
            for i, a in enumerate(row)
        }
        self._messages = {
            (route.number, k, gradient): self._message(route, k, gradient)
            for route in routes.all
            if self._touches(route) and not self._is_local(route)
            for gradient in ((False, True) if route.gradient else (False,))
            for k in range(pipeline.microbatches)
        }
        incoming = [
            message
            for (number, _, gradient), message in self._messages.items()
            if self._is_mine(_reader(routes.all[number], gradient))
        ]
        self._mailbox = Mailbox(incoming, device, channels, traffic, pipeline.ahead)
        self._local: dict[tuple[int, int, bool], torch.Tensor] = {}
        self._inputs: dict[tuple[int, int], dict[int, torch.Tensor]] = {}
        self._outputs: dict[tuple[int, int], dict[int, torch.Tensor]] = {}
        self._tapes: dict[tuple[int, int], Tape] = {}

    def _is_mine(self, stage: int) -> bool:
        return self._pipeline.placement[stage] == self._pipeline.me

    def _is_local(self, route: Route) -> bool:
        placement = self._pipeline.placement
        return placement[route.producer] == placement[route.consumer]

    def _touches(self, route: Route) -> bool:
        return self._is_mine(route.producer) or self._is_mine(route.consumer)

    def _rank_of(self, stage: int) -> int:
        return self._pipeline.ranks[self._pipeline.placement[stage]]

    def _message(self, route: Route, microbatch: int, gradient: bool) -> Message:
        """The message that carries a route's value, or its gradient, for one microbatch."""
        target = _reader(route, gradient)
        source = route.producer if target == route.consumer else route.consumer
        kind = self._gradient_kind if gradient else "forward"
        return Message(
            tag=(route.number * self._microbatches + microbatch) * 2 + gradient,
            peer=self._rank_of(target if self._is_mine(source) else source),
            gradient=gradient,
            shape=route.shape,
            dtype=route.travels,
            sent_by=self._position[(kind, source, microbatch)],
            used_by=self._position[(kind, target, microbatch)],
        )

    def step(
        self, microbatches: Sequence[Leaves], weights: Sequence[float], scale: float = 1.0
    ) -> torch.Tensor | None:
        """Run all actions of one step; gradients accumulate in the parameters.

        Args:
            microbatches: Flat batch tensors of each microbatch of this replica.
            weights: What the loss of each counts.
            scale: Factor on all gradients.

        Returns:
            Weighted sum of the losses on the rank of the last stage, else ``None``.
        """
        self._weights, self._scale = weights, scale
        losses: list[torch.Tensor] = []
        self._mailbox.begin()
        for action in self._actions:
            if action.kind == "forward":
                self._forward(action, microbatches[action.microbatch], losses)
            elif action.kind == "backward":
                self._backward(action)
            elif action.kind == "backward_input":
                self._backward_input(action)
            else:
                self._backward_weight(action)
        self._mailbox.finish()
        return torch.stack(losses).sum() if losses else None

    def _forward(self, action: Action, leaves: Leaves, losses: list[torch.Tensor]) -> None:
        stage, k = action.stage, action.microbatch
        inputs = {}
        for route in self._into[stage]:
            value = self._fetch(route, action, gradient=False)
            inputs[route.op] = value.requires_grad_(route.gradient)
        start = self._recorder.mark()
        if self._splits:
            outputs, self._tapes[stage, k] = self._programs[stage].keep(leaves, inputs, k)
        else:
            outputs = self._programs[stage].forward(leaves, inputs, k)
            self._inputs[stage, k], self._outputs[stage, k] = inputs, outputs
        for route in self._out_of[stage]:
            self._hand_over(route, k, outputs[route.op], gradient=False)
        if stage == self._last_stage:
            (loss,) = outputs.values()
            self._loss = loss.detach()
            losses.append(wide(self._loss) * self._weights[k])
        self._recorder.add("forward", start, stage=stage, microbatch=k)

    def _backward(self, action: Action) -> None:
        stage, k = action.stage, action.microbatch
        gradients = self._gradients_of_exports(action)
        start = self._recorder.mark()
        inputs = self._inputs.pop((stage, k))
        outputs = self._outputs.pop((stage, k))
        if self._before_backward is not None:
            self._before_backward(stage, k)
        live = [op for op in gradients if outputs[op].requires_grad]
        if live:
            torch.autograd.backward([outputs[op] for op in live], [gradients[op] for op in live])
        found = {op: value.grad for op, value in inputs.items() if value.grad is not None}
        self._send_back(stage, k, found)
        self._recorder.add("backward", start, stage=stage, microbatch=k)

    def _backward_input(self, action: Action) -> None:
        stage, k = action.stage, action.microbatch
        gradients = self._gradients_of_exports(action)
        start = self._recorder.mark()
        self._send_back(stage, k, self._tapes[stage, k].backward_input(gradients))
        self._recorder.add("backward_input", start, stage=stage, microbatch=k)

    def _backward_weight(self, action: Action) -> None:
        stage, k = action.stage, action.microbatch
        start = self._recorder.mark()
        self._tapes.pop((stage, k)).backward_weight()
        self._recorder.add("backward_weight", start, stage=stage, microbatch=k)

    def _gradients_of_exports(self, action: Action) -> dict[int, torch.Tensor]:
        """Op index -> gradient, summed over the stages that read the value."""
        stage = action.stage
        if stage == self._last_stage:
            (loss_op,) = self._programs[stage].exports
            factor = self._weights[action.microbatch] * self._scale
            return {loss_op: torch.full_like(self._loss, factor)}
        gradients: dict[int, torch.Tensor] = {}
        for route in self._out_of[stage]:
            if route.gradient:
                gradient = self._fetch(route, action, gradient=True)
                known = gradients.get(route.op)
                gradients[route.op] = gradient if known is None else known + gradient
        return gradients

    def _send_back(self, stage: int, microbatch: int, found: dict[int, torch.Tensor]) -> None:
        """Gradients of what the stage read; zeros where nothing depends on it."""
        for route in self._into[stage]:
            if route.gradient:
                gradient = found.get(route.op)
                if gradient is None:
                    gradient = torch.zeros(route.shape, dtype=route.dtype, device=self._device)
                self._hand_over(route, microbatch, gradient, gradient=True)

    def _fetch(self, route: Route, action: Action, *, gradient: bool) -> torch.Tensor:
        k = action.microbatch
        local = self._local.pop((route.number, k, gradient), None)
        if local is not None:
            return local
        start = self._recorder.mark()
        value = self._mailbox.receive(self._messages[(route.number, k, gradient)])
        self._recorder.add(
            "wait",
            start,
            stage=action.stage,
            microbatch=k,
            towards=action.kind,
            peer=route.consumer if gradient else route.producer,
        )
        return value.to(route.dtype)

    def _hand_over(
        self, route: Route, microbatch: int, value: torch.Tensor, *, gradient: bool
    ) -> None:
        if self._is_local(route):
            self._local[(route.number, microbatch, gradient)] = value.detach()
        else:
            message = self._messages[(route.number, microbatch, gradient)]
            self._mailbox.send(message, value.to(message.dtype))


def _reader(route: Route, gradient: bool) -> int:
    """The stage that receives the value, or its gradient."""
    return route.producer if gradient else route.consumer
