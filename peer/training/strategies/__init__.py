"""The training algorithms by name: `training.strategy` of the run spec."""

from __future__ import annotations

import torch

from peer.settings import RunSettings
from peer.training.strategies.accumulate import Accumulate
from peer.training.strategies.base import Strategy
from peer.training.strategies.local_steps import LocalSteps
from protocols.optimization import Schedule
from protocols.sections import unknown_name

STRATEGIES: dict[str, type[Strategy]] = {"accumulate": Accumulate, "local-steps": LocalSteps}


def build_strategy(
    settings: RunSettings, model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule
) -> Strategy:
    """The run's strategy for this model. Raises SpecError when the settings name none that there is."""
    if settings.strategy not in STRATEGIES:
        raise unknown_name("training.strategy", settings.strategy, STRATEGIES)
    return STRATEGIES[settings.strategy](model, optimizer, schedule, settings)
