"""A run's history: one JSON line per event in `events.jsonl`, and scalars for TensorBoard beside it.

docs/EVENTS.md lists the events and their fields.

Scalars: train/loss, train/lr, train/grad_norm, swarm/peers, swarm/samples_per_second, eval/loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coordinator.sinks.base import Sink
from protocols.errors import DiskError
from protocols.host.event_log import EventLog

# Twice: the older file stays beside it. A hundred thousand epochs of a small swarm, and no liar can fill the disk.
HISTORY_BYTES = 1 << 30


class History(Sink):
    """The run's events and scalars in the folder `directory`. Every method raises DiskError; the next call tries anew."""

    def __init__(self, directory: Path) -> None:
        self._events = EventLog(directory / "events.jsonl", max_bytes=HISTORY_BYTES)
        self.path = self._events.path
        self._scalars_folder = directory / "tensorboard"
        self._scalars: Any = None  # tensorboard's SummaryWriter, once there is a scalar

    def event(self, record: Mapping[str, Any]) -> None:
        self._events.append(record)

    def scalar(self, tag: str, value: float, epoch: int) -> None:
        try:
            if self._scalars is None:
                # Imported here: it takes a second.
                from torch.utils.tensorboard import SummaryWriter

                self._scalars = SummaryWriter(str(self._scalars_folder), flush_secs=10)
            self._scalars.add_scalar(tag, value, epoch)
        except OSError as error:
            raise DiskError(
                f"the scalars in {self._scalars_folder} cannot be written: {error.strerror or error}",
                remedy="Free some space on that disk.",
            ) from error

    def close(self) -> None:
        try:
            if self._scalars is not None:
                self._scalars.close()
                self._scalars = None
        finally:
            self._events.close()
