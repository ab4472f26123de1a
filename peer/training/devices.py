"""Which device trains."""

from __future__ import annotations

import os

import torch

from peer.config import check_device_name
from protocols.errors import UsageError
from protocols.host.terminal import plural


def pick_device(wanted: str) -> torch.device:
    """'auto' takes CUDA, then Apple's MPS, then the CPU. Raises UsageError for a device that is not there."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    check_device_name(wanted)
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
    return "Apple GPU (mps)" if device.type == "mps" else f"CPU, {plural(os.cpu_count() or 1, 'core')}"
