"""The optimizer and the learning rate of a RunSpec, such that equal gradients give equal steps on every peer."""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_optimizer import Lamb
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from protocols.errors import SpecError
from protocols.run_spec import OptimizerSpec, RunSpec


def build_optimizer(spec: RunSpec, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW, LAMB (You et al., 2020) or SGD. The learning rate stands at the peak until a Schedule sets it.

    One tensor at a time (no foreach, no fused kernels): these differ between devices and torch builds in the order of their sums,
    and LAMB's batched form keeps slots that share memory, which no snapshot can hold.
    """
    options = spec.optimizer
    groups = _groups(model, options)
    if options.name == "adamw":
        return torch.optim.AdamW(
            groups, lr=options.learning_rate, betas=options.betas, eps=options.epsilon, foreach=False, fused=False
        )
    if options.name == "lamb":
        # Clipping is ours, on the averaged gradient, so LAMB's own (pre_norm) stays off.
        lamb: torch.optim.Optimizer = Lamb(
            groups, lr=options.learning_rate, betas=options.betas, eps=options.epsilon, pre_norm=False, foreach=False
        )
        return lamb
    return torch.optim.SGD(groups, lr=options.learning_rate, momentum=options.momentum, foreach=False, fused=False)


def _groups(model: nn.Module, options: OptimizerSpec) -> list[dict[str, Any]]:
    """Weight decay for matrices and embeddings; none for vectors: biases and normalisation. Both in the model's order."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if parameter.dim() >= 2]
    plain = [parameter for parameter in parameters if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Schedule:
    """Learning rate as a pure function of the epoch, by transformers' get_scheduler: whoever joins late computes the same."""

    def __init__(self, spec: RunSpec, optimizer: torch.optim.Optimizer) -> None:
        """Sets the optimizer's learning rate to that of epoch 0. Raises SpecError when the schedule's options do not fit."""
        self._optimizer = optimizer
        self._peak = spec.optimizer.learning_rate
        schedule = spec.schedule
        # A throw-away optimizer: only the function from step to factor is wanted, not the state that a scheduler keeps.
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
            self._factor = scheduler.lr_lambdas[0]
            probes = [self._factor(step) for step in (0, 1, spec.total_steps or 1000)]
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise SpecError(f'schedule "{schedule.name}": {error}', remedy="Correct schedule.options in the run file.") from error
        if not all(isinstance(probe, float | int) and math.isfinite(probe) for probe in probes):
            raise SpecError(f'schedule "{schedule.name}" yields no number', remedy="Correct schedule.options in the run file.")
        self.set_epoch(0)

    def learning_rate_at(self, epoch: int) -> float:
        """The rate with which the gradient of `epoch` (the first is 0) is applied."""
        return self._peak * float(self._factor(epoch))

    def set_epoch(self, epoch: int) -> None:
        """Give the optimizer the rate for stepping out of `epoch`."""
        self.epoch = epoch
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate_at(epoch)

    def step(self) -> None:
        """Call after each optimizer step."""
        self.set_epoch(self.epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError if this is no state of a Schedule."""
        epoch = state.get("epoch")
        if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
            raise ValueError(f"not a schedule's state: {str(state)[:100]}")
        self.set_epoch(epoch)


def build_scheduler(spec: RunSpec, optimizer: torch.optim.Optimizer) -> Schedule:
    return Schedule(spec, optimizer)
