"""The way of training in which this computer is fastest: found by trials, and kept for the next start."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from pydantic import BaseModel, ConfigDict, ValidationError

from peer.config import Precision
from peer.training.devices import describe
from peer.training.gradient_pass import GradientPass
from protocols.errors import LocalError, UsageError
from protocols.host.terminal import plural
from protocols.tasks.base import Task

# On a CPU a larger micro-batch gains nothing, and a smaller one lets the peer freeze sooner.
CPU_MICRO_BATCH = 8
LARGEST_MICRO_BATCH = 64

TRIAL_S = 0.3  # passes are timed for so long, and at most so many
TRIAL_PASSES = 5
ALL_TRIALS_S = 10.0  # after that no further trial begins: the volunteer wants to contribute
# What is less exact, or takes more of the computer, has to be faster by this much.
WORTH = 1.1

_log = logging.getLogger(__name__)


class Way(BaseModel):
    """How a computer runs micro-batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    micro_batch: int
    """Samples per forward and backward pass."""
    precision: Precision = "fp32"
    threads: int
    """Of the CPU, whatever the device."""
    compiled: bool = False
    """By torch.compile."""

    def __str__(self) -> str:
        how = f"{self.precision}, compiled" if self.compiled else self.precision
        return f"{plural(self.micro_batch, 'sample')} at a time in {how}"


class Choices(BaseModel):
    """What the volunteer chose; None where the trials decide."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    micro_batch: int | None = None
    precision: Precision | None = None
    threads: int | None = None
    compiled: bool | None = None

    def check(self, target_batch_size: int) -> None:
        """Raises UsageError when a micro-batch exceeds the run's batch."""
        if self.micro_batch is not None and self.micro_batch > target_batch_size:
            raise UsageError(
                f"--micro-batch {self.micro_batch} is larger than the run's whole batch of {target_batch_size} samples",
                remedy=f"Choose at most {target_batch_size}.",
            )


Rate = Callable[[Way], float]
"""Samples a second in this way. Raises what the model raises, RuntimeError when the device's memory is too small among it."""


def find_way(device: torch.device, choices: Choices, target_batch_size: int, rate: Rate, clock: Callable[[], float]) -> Way:
    """The fastest way that fits into the device's memory. Raises UsageError for a choice that cannot be, LocalError when not even
    one sample fits."""
    choices.check(target_batch_size)
    ends_at = clock() + ALL_TRIALS_S
    way = _first(device, choices, target_batch_size, rate)
    candidates = [*_with_threads(device, choices, way), *_with_precisions(device, choices, way)]
    best = rate(way) if candidates or _tries_compiling(device, choices) else 0.0
    for change in candidates:
        if clock() < ends_at:
            way, best = _better(way.model_copy(update=change), way, best, rate)
    if _tries_compiling(device, choices):
        way, best = _better(way.model_copy(update={"compiled": True}), way, best, rate)
    return way


def _first(device: torch.device, choices: Choices, target_batch_size: int, rate: Rate) -> Way:
    """Where the trials begin: the largest micro-batch, in the precision that the device is built for."""
    way = Way(
        micro_batch=choices.micro_batch or min(CPU_MICRO_BATCH, target_batch_size),
        precision=choices.precision or ("bf16" if _has_bf16(device) else "fp32"),
        threads=choices.threads or torch.get_num_threads(),
        compiled=choices.compiled or False,
    )
    if choices.micro_batch is not None or device.type == "cpu":
        return way

    size = min(LARGEST_MICRO_BATCH, target_batch_size)
    while True:
        way = way.model_copy(update={"micro_batch": size})
        try:
            rate(way.model_copy(update={"compiled": False}))
            return way
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if size == 1:
                remedy = "Try --device cpu."
                raise LocalError(f"not even one sample fits on {describe(device)}: {error}", remedy=remedy) from error
        clear_device_cache(garbage_collection=True)
        size //= 2


def _with_threads(device: torch.device, choices: Choices, way: Way) -> Iterable[dict[str, object]]:
    """Small models only wait for each other's threads, and two threads of one core seldom do more than one."""
    if device.type != "cpu" or choices.threads is not None:
        return
    cores = psutil.cpu_count(logical=False) or way.threads
    for threads in sorted({cores, max(1, cores // 2), 1} - {way.threads}, reverse=True):
        if threads < way.threads:
            yield {"threads": threads}


def _with_precisions(device: torch.device, choices: Choices, way: Way) -> Iterable[dict[str, object]]:
    """16 bits that the first way does not have: fp16 for a GPU without bf16, bf16 for a CPU."""
    if choices.precision is None and way.precision == "fp32":
        yield {"precision": "bf16" if device.type == "cpu" else "fp16"}


def _has_bf16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _tries_compiling(device: torch.device, choices: Choices) -> bool:
    """Compiling takes a minute, and on a CPU a compiler that may not be there."""
    return choices.compiled is None and device.type == "cuda"


def _better(candidate: Way, way: Way, best: float, rate: Rate) -> tuple[Way, float]:
    """(the better of both, its samples a second). A candidate that fails is not taken."""
    needed = best if candidate.threads < way.threads else WORTH * best
    try:
        found = rate(candidate)
    except Exception as error:  # noqa: BLE001  whatever a compiler or a device may raise: the way that works is kept
        _log.info("%s does not work here: %s", candidate, error)
        return way, best
    _log.info("%s: %.1f samples/s, to beat %.1f", candidate, found, needed)
    return (candidate, found) if found > needed else (way, best)


class Trials:
    """Times a few passes over the run's data. Call on the training thread; what it adds to the gradients is to be discarded."""

    def __init__(self, task: Task, model: torch.nn.Module, device: torch.device, *, seed: int, peer: str) -> None:
        """`seed`, `peer`: as `Task.batches` takes them."""
        self._task, self._model, self._device = task, model, device
        self._seed, self._peer = seed, peer

    def rate(self, way: Way) -> float:
        """Samples a second of the fastest of some passes, after one to warm up."""
        torch.set_num_threads(way.threads)
        over = GradientPass(self._task, self._model, self._device, precision=way.precision, compiled=way.compiled)
        with self._task.batches(seed=self._seed, peer=self._peer, micro_batch=way.micro_batch) as batches:
            batch = next(batches)
            over(batch)
            seconds: list[float] = []
            while len(seconds) < TRIAL_PASSES and sum(seconds) < TRIAL_S:
                began = time.perf_counter()
                over(batch)
                seconds.append(time.perf_counter() - began)
        return way.micro_batch / min(seconds)


class _Found(BaseModel):
    """What is kept: a way, and for what it was found."""

    model_config = ConfigDict(extra="forbid")

    machine: str
    run: str
    choices: Choices
    way: Way


class Memory:
    """The way that was found at an earlier start, in a file."""

    def __init__(self, path: Path, device: torch.device, run: str, choices: Choices) -> None:
        """`run`: the digest of its spec."""
        self._path = path
        self._machine = f"{platform.node()}, {os.cpu_count()} cores, {describe(device)}, torch {torch.__version__}"
        self._run, self._wishes = run, choices

    def recall(self) -> Way | None:
        """None if none was found on this machine, for this run, under these choices."""
        try:
            found = _Found.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return None
        same = (found.machine, found.run, found.choices) == (self._machine, self._run, self._wishes)
        return found.way if same else None

    def keep(self, way: Way) -> None:
        found = _Found(machine=self._machine, run=self._run, choices=self._wishes, way=way)
        self._path.write_text(found.model_dump_json(indent=2) + "\n")
