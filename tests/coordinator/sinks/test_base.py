"""A list of sinks: each is told everything, whatever becomes of the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import pytest

from coordinator.sinks.base import Sink, Sinks
from coordinator.swarm_view import SwarmView
from protocols.errors import DiskError

VIEW = SwarmView("python-lm", "ab", 12, "cd", 31, 96, 1152, "training", (), None)


class Told(Sink):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def event(self, record: Mapping[str, Any]) -> None:
        self.told.append(dict(record))

    def scalar(self, tag: str, value: float, epoch: int) -> None:
        self.told.append((tag, value, epoch))

    def swarm(self, view: SwarmView) -> None:
        self.told.append(view)

    def close(self) -> None:
        self.told.append("closed")


class Failing(Sink):
    def __init__(self, problem: Exception) -> None:
        self._problem = problem

    def event(self, record: Mapping[str, Any]) -> None:
        raise self._problem

    def scalar(self, tag: str, value: float, epoch: int) -> None:
        raise self._problem

    def swarm(self, view: SwarmView) -> None:
        raise self._problem

    def close(self) -> None:
        raise self._problem


@pytest.mark.parametrize("problem", [DiskError("the disk is full"), ConnectionError("nobody listens"), KeyError("a bug")])
def test_a_sink_that_fails_stops_neither_the_others_nor_the_run(problem: Exception, caplog: pytest.LogCaptureFixture) -> None:
    first, last = Told(), Told()
    with closing(Sinks([first, Failing(problem), last], clock=lambda: 2.5)) as sinks:
        sinks.event("evaluated", epoch=1, loss=4.5)
        sinks.scalar("eval/loss", 4.5, 1)
        sinks.swarm(VIEW)
    evaluated = {"time": 2.5, "event": "evaluated", "epoch": 1, "loss": 4.5}
    assert first.told == last.told == [evaluated, ("eval/loss", 4.5, 1), VIEW, "closed"]
    assert len(caplog.records) == 4
    assert all(str(problem) in record.getMessage() + str(record.exc_info) for record in caplog.records)


def test_a_sink_that_overrides_nothing_is_a_sink() -> None:
    with closing(Sinks([Sink()])) as sinks:
        sinks.event("run_finished")
        sinks.scalar("train/loss", 1.0, 1)
        sinks.swarm(VIEW)


def test_sinks_are_given_plain_values() -> None:
    sink = Told()
    Sinks([sink], clock=lambda: 0.0).event("committed", loss=math.nan)
    assert sink.told == [{"time": 0.0, "event": "committed", "loss": None}]
