"""Several GPUs of one computer as one peer, started by torchrun. Rank 0 is the peer; the other ranks only compute gradients.

Rank 0 orders each step, and all ranks take it at once. Gradients stay where they were computed until the contribution is frozen:
then their sum goes to rank 0. Parameters come back before the first micro-batch after that. This fits strategies that step at
commits alone.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NoReturn

import torch
from torch import distributed

from peer.training.devices import pick_device
from peer.training.gradient_buffer import GradientBuffer
from peer.training.gradient_pass import GradientPass
from peer.training.tuning import Way
from protocols.errors import LocalError
from protocols.run_spec import RunSpec
from protocols.tasks.base import Batch, Task
from protocols.tasks.registry import open_task

# Between two orders there may be a night in which nobody else takes part.
PATIENCE = datetime.timedelta(days=30)


class _Order(enum.IntEnum):
    BEGIN = 0
    PASS = 1
    GATHER = 2
    END = 3


@dataclass(frozen=True)
class Setup:
    """What rank 0 tells the others of a group."""

    spec: RunSpec
    home: Path
    data: tuple[str, ...]
    device: str
    draws: str
    way: Way


def _join() -> None:
    """Orders and counts travel over gloo, tensors of a GPU over NCCL."""
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)


class LocalGroup(GradientPass):
    """Rank 0's passes: each is one pass of every rank. Use it as a context: afterwards the others free their model, and wait for
    the next group or `dismiss`."""

    def __init__(self, task: Task, model: torch.nn.Module, device: torch.device, setup: Setup) -> None:
        """`model` is the peer's own. Returns once every rank is there."""
        super().__init__(task, model, device, precision=setup.way.precision, compiled=setup.way.compiled)
        if not distributed.is_initialized():
            _join()
        _tell(setup)

    def begin(self) -> None:
        _order(_Order.BEGIN)
        _broadcast(self.model)

    def __call__(self, batch: Batch) -> tuple[int, float]:
        _order(_Order.PASS)
        return _totals(*super().__call__(batch))

    def gather(self) -> None:
        _order(_Order.GATHER)
        _reduce(self.parameters)

    def __enter__(self) -> LocalGroup:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(LocalError):  # then they have ended already
            _order(_Order.END)


def dismiss() -> None:
    """Rank 0 ends in order, and so do the others."""
    if not distributed.is_initialized():
        _join()
    with contextlib.suppress(LocalError):
        _tell(None)
    distributed.destroy_process_group()


def run_rank(number: int) -> NoReturn:
    """Take rank 0's orders until it dismisses this process, and end it. Ctrl-C is for rank 0."""
    for interrupt in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interrupt, signal.SIG_IGN)
    _join()
    while (setup := _told()) is not None:
        _serve(setup, number)
    distributed.destroy_process_group()
    # A thread of gloo may still hold a tensor. It would abort the process if it let go of it while Python shuts down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _serve(setup: Setup, number: int) -> None:
    """One group, to its end."""
    device = pick_device(f"cuda:{number}" if setup.device.startswith("cuda") else setup.device)
    torch.set_num_threads(setup.way.threads)
    task = open_task(setup.spec, setup.home, data_paths=setup.data)
    model = task.build_model().to(device)
    over = GradientPass(task, model, device, precision=setup.way.precision, compiled=setup.way.compiled)
    gradient = GradientBuffer(over.parameters)
    draws = f"{setup.draws}:{number}"  # other samples than any other rank
    with task.batches(seed=setup.spec.run.seed, peer=draws, micro_batch=setup.way.micro_batch) as batches:
        while (order := _ordered()) is not _Order.END:
            if order is _Order.BEGIN:
                _broadcast(model)
                gradient.flat.zero_()
            elif order is _Order.PASS:
                _totals(*over(next(batches)))
            else:
                _reduce(over.parameters)
                gradient.flat.zero_()


@contextlib.contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LocalError("another process of this peer ended: torchrun shows why") from error


@_together()
def _tell(setup: Setup | None) -> None:
    distributed.broadcast_object_list([setup], src=0)


@_together()
def _told() -> Setup | None:
    told: list[Setup | None] = [None]  # room for what is received
    distributed.broadcast_object_list(told, src=0)
    return told[0]


@_together()
def _order(order: _Order) -> None:
    distributed.broadcast(torch.tensor([int(order)]), src=0)


@_together()
def _ordered() -> _Order:
    order = torch.zeros(1, dtype=torch.int64)
    distributed.broadcast(order, src=0)
    return _Order(int(order))


@_together()
def _broadcast(model: torch.nn.Module) -> None:
    for tensor in chain(model.parameters(), model.buffers()):
        distributed.broadcast(tensor.detach(), src=0)


@_together()
def _reduce(parameters: list[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        assert parameter.grad is not None
        distributed.reduce(parameter.grad, dst=0)


@_together()
def _totals(samples: int, loss_sum: float) -> tuple[int, float]:
    """Of all ranks; they are told to rank 0 alone."""
    totals = torch.tensor([samples, loss_sum], dtype=torch.float64)
    distributed.reduce(totals, dst=0)
    return int(totals[0]), float(totals[1])
