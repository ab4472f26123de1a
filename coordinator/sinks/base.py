"""Sinks: where a coordinator writes down and shows what happens. To add one, implement Sink and list it in coordinator/app.py."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coordinator.swarm_view import SwarmView
from protocols.errors import DugnadError
from protocols.host.event_log import event_record

_log = logging.getLogger(__name__)


class Sink:
    """Takes in a run's events, scalars and views. Override what the sink has a use for; the rest does nothing.

    A method may raise whatever it likes: `Sinks` logs the problem and goes on. Views come from the network's thread and all
    else from the main thread, so a sink that uses both needs a lock.
    """

    def event(self, record: Mapping[str, Any]) -> None:
        """One record of events.jsonl, with the fields that docs/EVENTS.md lists."""

    def scalar(self, tag: str, value: float, epoch: int) -> None:
        """One number of a curve, such as train/loss at an epoch."""

    def swarm(self, view: SwarmView) -> None:
        """How the swarm stands now, twice a second. Must return at once: no disk, no network."""

    def close(self) -> None:
        """Called once, at the end."""


class Sinks:
    """All sinks of a coordinator. A sink that fails stops neither the others nor the run."""

    def __init__(self, sinks: Sequence[Sink], *, clock: Callable[[], float] = time.time) -> None:
        self._sinks = tuple(sinks)
        self._clock = clock

    def event(self, event: str, /, **fields: Any) -> None:
        """Something happens now. The fields of each event are listed in history.py."""
        record = event_record(self._clock(), event, fields)
        self._each(lambda sink: sink.event(record))

    def scalar(self, tag: str, value: float, epoch: int) -> None:
        self._each(lambda sink: sink.scalar(tag, value, epoch))

    def swarm(self, view: SwarmView) -> None:
        self._each(lambda sink: sink.swarm(view))

    def close(self) -> None:
        self._each(lambda sink: sink.close())

    def _each(self, tell: Callable[[Sink], None]) -> None:
        for sink in self._sinks:
            try:
                tell(sink)
            except DugnadError as error:
                _log.error("%s", error)
            except Exception:  # noqa: BLE001  a sink is an add-on: whatever goes wrong in it must not end the run
                _log.exception("%s failed", type(sink).__name__)
