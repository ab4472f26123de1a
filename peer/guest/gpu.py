"""Whether other programs use the GPU that this process trains on."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import pynvml
import torch

# Percent of the GPU's time in other programs. A desktop takes less.
BUSY_PERCENT = 25
RECENT_S = 10.0
# The GPU counts as used for so long after another program used it: to leave and to come back takes a while.
QUIET_S = 60.0


class GpuUse:
    """Whether other programs use the GPU that this process trains on. Only NVIDIA's driver tells."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used_at = float("-inf")
        self._handle: Any = None
        if device.type == "cuda":
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                uuid = torch.cuda.get_device_properties(device).uuid
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")

    def by_others(self) -> bool:
        """Now, or less than QUIET_S ago."""
        if self._handle is not None and self._others_percent() >= BUSY_PERCENT:
            self._used_at = self._clock()
        return self._clock() - self._used_at < QUIET_S

    def _others_percent(self) -> float:
        """0 where the driver does not tell, or does not list this process: in a container, numbers of processes differ."""
        me, since_us = os.getpid(), int((time.time() - RECENT_S) * 1e6)
        try:
            if me not in {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle)}:
                return 0.0
            newest = {sample.pid: sample for sample in pynvml.nvmlDeviceGetProcessUtilization(self._handle, since_us)}
        except pynvml.NVMLError:
            return 0.0
        return float(sum(sample.smUtil for pid, sample in newest.items() if pid != me))
