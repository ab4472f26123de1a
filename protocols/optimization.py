"""Build the optimizer and the learning-rate schedule of a RunSpec, such that equal gradients give equal steps on every peer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from pytorch_optimizer import Lamb
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from protocols.errors import SpecError
from protocols.run_spec import OptimizerSpec, RunSpec


def build_optimizer(spec: RunSpec, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW, LAMB (You et al., 2020) or SGD for `model`. The learning rate is the peak until a Schedule sets it.

    The optimizer steps one tensor at a time, without foreach or fused kernels. The order of their sums differs between devices
    and torch builds. LAMB's batched form also keeps slots that share memory, which a snapshot cannot hold.
    """
    options = spec.optimizer
    groups = _groups(model, options)
    if options.name == "adamw":
        return torch.optim.AdamW(
            groups, lr=options.learning_rate, betas=options.betas, eps=options.epsilon, foreach=False, fused=False
        )
    if options.name == "lamb":
        # We clip the averaged gradient ourselves, so LAMB's own clipping (pre_norm) stays off.
        lamb: torch.optim.Optimizer = Lamb(
            groups, lr=options.learning_rate, betas=options.betas, eps=options.epsilon, pre_norm=False, foreach=False
        )
        return lamb
    return torch.optim.SGD(groups, lr=options.learning_rate, momentum=options.momentum, foreach=False, fused=False)


def build_outer_optimizer(model: nn.Module, learning_rate: float, momentum: float) -> torch.optim.Optimizer:
    """The optimizer that joins local steps: SGD, with Nesterov's momentum if there is any (DiLoCo, Douillard et al., 2023).

    Its gradient is the averaged movement. Rate 1 without momentum sets the parameters to the mean of the peers'.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, nesterov=momentum > 0, foreach=False, fused=False)


def build_state_optimizer(spec: RunSpec, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer whose slots are training state, as the run's strategy has it."""
    training = spec.training
    if training.strategy == "local-steps":
        return build_outer_optimizer(model, training.outer_learning_rate, training.outer_momentum)
    return build_optimizer(spec, model)


def _groups(model: nn.Module, options: OptimizerSpec) -> list[dict[str, Any]]:
    """Parameter groups, in the model's order: matrices and embeddings with weight decay, vectors (biases, norms) without."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if parameter.dim() >= 2]
    plain = [parameter for parameter in parameters if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Schedule:
    """The learning rate as a pure function of the epoch, so that a late joiner computes the same.

    The function is that of transformers' get_scheduler.
    """

    def __init__(self, spec: RunSpec, optimizer: torch.optim.Optimizer) -> None:
        """Set the optimizer's learning rate to that of epoch 0. Raises SpecError if the schedule's options do not fit."""
        self._optimizer = optimizer
        self._peak = spec.optimizer.learning_rate
        schedule = spec.schedule
        # We need only the scheduler's function from step to factor, so it gets a throw-away optimizer.
        idle = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=self._peak)
        try:
            scheduler = get_scheduler(
                schedule.name,
                idle,
                num_warmup_steps=schedule.warmup_steps,
                num_training_steps=spec.total_steps,
                scheduler_specific_kwargs=dict(schedule.options),
            )
            if not isinstance(scheduler, LambdaLR):
                raise TypeError("its rate is no function of the epoch alone")
            self._factor: Callable[[float], float] = cast(Any, scheduler.lr_lambdas[0])
            probes = [self._factor(step) for step in (0, 1, spec.total_steps or 1000)]
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise SpecError(f'schedule "{schedule.name}": {error}', remedy="Correct schedule.options in the run file.") from error
        if not all(isinstance(probe, float | int) and math.isfinite(probe) for probe in probes):
            raise SpecError(f'schedule "{schedule.name}" yields no number', remedy="Correct schedule.options in the run file.")
        self.set_epoch(0)

    def learning_rate_at(self, epoch: float) -> float:
        """The rate for the step out of `epoch`, which counts from 0. Half epochs lie between."""
        return self._peak * float(self._factor(epoch))

    def set_epoch(self, epoch: int) -> None:
        """Set the optimizer's rate to that for the step out of `epoch`."""
        self.epoch = epoch
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate_at(epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move to the epoch of a saved state. Raises ValueError if this is no state of a Schedule."""
        epoch = state.get("epoch")
        if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
            raise ValueError(f"not a schedule's state: {str(state)[:100]}")
        self.set_epoch(epoch)


def build_scheduler(spec: RunSpec, optimizer: torch.optim.Optimizer) -> Schedule:
    return Schedule(spec, optimizer)
