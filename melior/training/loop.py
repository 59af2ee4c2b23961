"""From an objective to a step, and from steps to a trained model."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from melior.options import OptimConfig
from melior.records import Metrics
from melior.training import processes
from melior.training.checkpoint import State
from melior.training.memory import share_freed_memory
from melior.training.shards import divided_like, is_divided, own_part
from melior.types import Objective

B = TypeVar("B")

Hook = Callable[[int, Metrics], None]
"""Called after each step with its number, from 1, and its metrics."""


class NonFiniteError(ValueError):
    """A loss, metric or gradient is inf or nan; the weights are those before the step."""


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop; the step that was under way is finished."""

    def __init__(self, step: int, signal_number: int, advice: str = "") -> None:
        self.step = step
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
        name = signal.Signals(signal_number).name
        super().__init__(f"{name}: stopped after step {step}{advice and '; '}{advice}")


def descend(
    objective: Objective[B],
    parameters: Mapping[str, nn.Parameter],
    config: OptimConfig,
    *,
    total_steps: int,
    masters: Mapping[str, Tensor] = {},
) -> Step[B]:
    """Return the step that lowers an objective by AdamW.

    Args:
        objective: gives each micro-batch's share of the loss.
        parameters: by name; those that need no gradient are left alone.
        config: of the optimizer.
        total_steps: the length of the schedule.
        masters: fp32 originals of parameters in bf16, taken over without a copy; a bf16 parameter
            that has none here starts from its own fp32 copy.
    """
    return Step(objective, parameters, config, total_steps=total_steps, masters=masters)


def fit(
    step: Callable[[Sequence[B]], Metrics],
    batches: Iterable[Sequence[B]],
    *,
    hooks: Iterable[Hook] = (),
    start: int = 0,
    save: Callable[[int], object] | None = None,
) -> Metrics:
    """Take a step for each optimizer batch, a sequence of micro-batches.

    A signal to one of the processes that share the work stops all, after the same step.

    Args:
        step: made by `descend`, or a function that calls several such steps.
        batches: those still to come, when `start` of them are behind.
        hooks: called in this order after each step. Whatever writes metrics comes before the hook
            that saves a checkpoint, so that the file is never behind the checkpoint.
        start: the number of steps taken before.
        save: leaves a checkpoint of a step when a signal stops the loop.

    Raises:
        Interrupted: after SIGINT or SIGTERM, once the step under way is finished and saved.
        NonFiniteError: from a step.
    """
    metrics: Metrics = {}
    hooks = tuple(hooks)
    with _stop_signals() as received:
        for number, batch in enumerate(batches, start + 1):
            metrics = step(batch)
            for hook in hooks:
                hook(number, metrics)
            stopped_by = max(processes.gather(received[0] if received else 0))
            if stopped_by:
                if save:
                    save(number)
                raise Interrupted(number, stopped_by)
    return metrics


def scheduled_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of a step, counted from 0.

    A straight line up to the peak at the first step after the warm-up, never 0; then the half
    cosine, the straight line to 0, or the peak to the end.
    """
    warmup = math.ceil(config.warmup_ratio * total_steps - 1e-9)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    share = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    factors = {
        "cosine": (1 + math.cos(math.pi * share)) / 2,
        "linear": 1 - share,
        "constant": 1.0,
    }
    return config.learning_rate * factors[config.lr_scheduler_type]


class Step(Generic[B]):
    """One update of some parameters from one optimizer batch; made by `descend`.

    Holds what the optimizer updates (fp32 masters of bf16 parameters, other parameters
    themselves; where processes share the work, its own rows of them) and its moments. Touches no
    gradient of any parameter but its own.
    """

    def __init__(
        self,
        objective: Objective[B],
        parameters: Mapping[str, nn.Parameter],
        config: OptimConfig,
        *,
        total_steps: int,
        masters: Mapping[str, Tensor] = {},
    ) -> None:
        share_freed_memory()
        self.steps = 0
        self.total_steps = total_steps
        self._objective = objective
        self._config = config
        self._parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        if not self._parameters:
            raise ValueError("descend: a parameter that needs a gradient is needed; found none")
        self._weights = {
            name: _master(p, masters.get(name)) if _is_rounded(p) else own_part(p)
            for name, p in self._parameters.items()
        }
        self._round()
        weights = list(self._weights.values())
        self._optimizer = torch.optim.AdamW(
            weights,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            fused=all(weight.device.type in ("cpu", "cuda") for weight in weights) or None,
        )
        self._is_divided = any(map(is_divided, self._parameters.values()))
        if self._is_divided:  # a checkpoint's rows are read into what is there
            self._optimizer.state.update({weight: _at_rest(weight) for weight in weights})

    def __call__(self, batch: Sequence[B]) -> Metrics:
        """Update the parameters; return the batch's metrics with loss, grad_norm, learning_rate.

        Raises:
            NonFiniteError: naming the step, what is not finite, and the rows.
        """
        rate = scheduled_rate(self._config, self.steps, self.total_steps)
        self._clear()
        try:
            metrics: Metrics = {}
            for part in batch:
                for name, value in self._add_gradient(part).items():
                    metrics[name] = metrics.get(name, 0.0) + value
            norm = self._grad_norm()
            if not norm.isfinite():
                raise self._not_finite("gradient norm", float(norm), self._culprits(batch))
            self._update(rate, norm)
        finally:
            self._clear()
        self.steps += 1
        return processes.added(metrics) | {"grad_norm": float(norm), "learning_rate": rate}

    def state(self) -> State:
        """Return all that the next steps depend on: references, not copies."""
        state: State = {"steps": self.steps}
        for name, weight in self._weights.items():
            parameter = self._parameters[name]
            state[f"weight/{name}"] = divided_like(weight.detach(), parameter)
            for key, value in self._optimizer.state.get(weight, {}).items():
                state[f"{key}/{name}"] = divided_like(value, parameter)
        return state

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        """Take over a state, copying it into the parameters.

        Raises:
            ValueError: it is of other parameters.
        """
        shapes = {name: tuple(p.shape) for name, p in self._parameters.items()}
        saved = {
            name.removeprefix("weight/"): tuple(value.shape)
            for name, value in state.items()
            if name.startswith("weight/") and isinstance(value, Tensor)
        }
        if shapes != saved:
            names = [n for n in shapes | saved if shapes.get(n) != saved.get(n)]
            raise ValueError(
                f"state: weights of the same names and shapes are needed; found {names}"
            )
        self.steps = int(state["steps"])
        for name, weight in self._weights.items():
            weight.copy_(own_part(_tensor(state[f"weight/{name}"])))
            self._optimizer.state.pop(weight, None)
            moments = {k: state[f"{k}/{name}"] for k in _MOMENTS if f"{k}/{name}" in state}
            if moments:
                self._optimizer.state[weight] = {
                    key: own_part(_tensor(value)).to(weight.device, copy=True)
                    for key, value in moments.items()
                }
        self._round()

    def _add_gradient(self, part: B) -> Metrics:
        """Add a micro-batch's gradient to the weights' and return its metrics."""
        loss, metrics = self._objective(part)
        metrics = metrics | {"loss": float(loss.detach())}
        wrong = next(((n, v) for n, v in metrics.items() if not math.isfinite(v)), None)
        for found in processes.gather((*wrong, _origins([part])) if wrong else None):
            if found:  # in any process: all stop here
                raise self._not_finite(*found)
        if self._is_divided:  # what a graph hangs on are parameters gathered for a while
            loss.backward()
            for name, weight in self._weights.items():
                grad = self._parameters[name].grad
                weight.grad = None if grad is None else own_part(grad)
            return metrics
        with self._gathered_in_masters():
            loss.backward(inputs=list(self._parameters.values()))
        return metrics

    @contextmanager
    def _gathered_in_masters(self) -> Iterator[None]:
        """Add each rounded gradient to its master's as it comes, and free it: the sum is fp32."""
        handles = [
            parameter.register_post_accumulate_grad_hook(partial(_move_gradient, master))
            for parameter, master in self._rounded()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _grad_norm(self) -> Tensor:
        grads = [weight.grad for weight in self._weights.values() if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        return processes.total(norm.square()).sqrt() if self._is_divided else norm

    @torch.no_grad()
    def _update(self, rate: float, norm: Tensor) -> None:
        if norm > self._config.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(
                self._weights.values(), self._config.max_grad_norm, norm
            )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        for parameter, master in self._rounded():
            parameter.copy_(master)

    def _rounded(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        for name, parameter in self._parameters.items():
            if _is_rounded(parameter):
                yield parameter, self._weights[name]

    def _clear(self) -> None:
        for tensor in (*self._parameters.values(), *self._weights.values()):
            tensor.grad = None

    def _culprits(self, batch: Sequence[B]) -> list[str]:
        """Return the rows whose own gradient is not finite, or all if only their sum is not."""
        found = []
        for part in batch:
            self._clear()
            self._add_gradient(part)
            if not self._grad_norm().isfinite():
                found.append(part)
        return [row for rows in processes.gather(_origins(found or batch)) for row in rows]

    def _not_finite(self, what: str, value: float, origins: Sequence[str]) -> NonFiniteError:
        rows = ", ".join(origins[:8]) or "rows without a name"
        more = f" and {len(origins) - 8} more" if len(origins) > 8 else ""
        return NonFiniteError(
            f"step {self.steps + 1}: {what} must be finite; found {value} in {rows}{more}; the "
            "weights are as before this step; look at these rows, or lower learning_rate"
        )


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def _origins(parts: Sequence[object]) -> list[str]:
    return [origin for part in parts for origin in getattr(part, "origins", ())]


def _at_rest(weight: Tensor) -> dict[str, Tensor]:
    """Return what AdamW remembers of a weight before its first step."""
    moments = {key: torch.zeros_like(weight) for key in _MOMENTS[1:]}
    return {"step": torch.zeros((), dtype=torch.float32, device=weight.device), **moments}


def _is_rounded(parameter: Tensor) -> bool:
    return parameter.dtype in (torch.bfloat16, torch.float16)


def _master(parameter: nn.Parameter, original: Tensor | None) -> Tensor:
    source = parameter if original is None else original
    if source.shape != parameter.shape:
        raise ValueError(
            f"masters: shape {tuple(parameter.shape)} is needed; found {tuple(source.shape)}"
        )
    return source.detach().to(parameter.device, torch.float32)


def _move_gradient(master: Tensor, parameter: Tensor) -> None:
    assert parameter.grad is not None
    if master.grad is None:
        master.grad = parameter.grad.to(master.dtype)
    else:
        master.grad += parameter.grad
    parameter.grad = None


def _tensor(value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"state: a tensor is needed; found {value!r}")
    return value


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM; a second one stops at once."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        if processes.is_first():
            os.write(2, b"\nStopping after this step; once more to stop now, without saving.\n")

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
