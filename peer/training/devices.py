"""Which device trains, in which precision, and how many samples go through it at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate.utils import find_executable_batch_size

from protocols.errors import LocalError, UsageError
from protocols.host.terminal import plural

# On a CPU a larger micro-batch gains nothing, and a smaller one lets the peer freeze sooner.
CPU_MICRO_BATCH = 8
LARGEST_MICRO_BATCH = 64


def pick_device(wanted: str) -> torch.device:
    """'auto' takes CUDA, then Apple's MPS, then the CPU. Raises UsageError for a device that is not there."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    if re.fullmatch(r"cpu|mps|cuda(:\d+)?", wanted) is None:
        raise UsageError(f"there is no device {wanted!r}", remedy="Devices are auto, cpu, mps, cuda, cuda:1 and so on.")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        cause = str(error).splitlines()[0]
        raise UsageError(f"device {wanted!r} cannot be used: {cause}", remedy="Try --device auto or --device cpu.") from error
    return device


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return "Apple GPU (mps)" if device.type == "mps" else f"CPU, {plural(torch.get_num_threads(), 'thread')}"


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bf16 where the GPU has it in hardware; parameters and gradients stay in fp32, so that all peers add up the same kind
    of number."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def pick_micro_batch(device: torch.device, wanted: int | None, target_batch_size: int, try_out: Callable[[int], None]) -> int:
    """Samples per forward and backward pass: `wanted`, or the largest power of two that `try_out` gets through the device's
    memory.

    Raises UsageError when `wanted` exceeds the run's batch, LocalError when not even one sample fits.
    """
    if wanted is not None:
        if wanted > target_batch_size:
            raise UsageError(
                f"--micro-batch {wanted} is larger than the run's whole batch of {target_batch_size} samples",
                remedy=f"Choose at most {target_batch_size}.",
            )
        return wanted
    if device.type == "cpu":
        return min(CPU_MICRO_BATCH, target_batch_size)

    @find_executable_batch_size(starting_batch_size=min(LARGEST_MICRO_BATCH, target_batch_size))  # type: ignore[untyped-decorator]
    def largest(batch_size: int) -> int:
        try_out(batch_size)
        return batch_size

    try:
        return int(largest())
    except RuntimeError as error:
        raise LocalError(f"not even one sample fits on {describe(device)}: {error}", remedy="Try --device cpu.") from error
