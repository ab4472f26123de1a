"""Plain training of a task's model, for tests that want to see that it learns."""

from __future__ import annotations

import torch
from torch import nn

from protocols.tasks.base import Task


def teach(task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, *, micro_batch: int, steps: int) -> None:
    """One optimizer step by the mean over each of ann's first `steps` micro-batches."""
    with task.batches(seed=0, peer="ann", micro_batch=micro_batch) as batches:
        for _ in range(steps):
            batch = next(batches)
            optimizer.zero_grad()
            (task.loss(model, batch) / task.samples_in(batch)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
