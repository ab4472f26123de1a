"""The simulated training thread: peer/training/trainer.py and peer/training/job_queue.py in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peer.simulation.process import SimulatedPeer


class Trainer:
    """One thread: micro-batches and handed-over jobs, one after another."""

    def __init__(self, process: SimulatedPeer, micro_batch: int, step_s: float) -> None:
        self.process, self.micro_batch, self.step_s = process, micro_batch, step_s
        self.slowness = 1.0
        self._drawing = 0  # which of the endless series of micro-batches is wanted; 0: none
        self._series = 0
        self._busy_until = 0.0

    def job(self, seconds: float, act: Callable[[], None]) -> None:
        now = self.process.world.now
        self._busy_until = max(now, self._busy_until) + seconds
        self.process.world.at(self._busy_until - now, self.process, act)

    def resume(self) -> None:
        self.process.replica.restart()
        self._series += 1
        self._drawing = self._series if self.micro_batch else 0
        self._next(self._drawing)

    def stop_drawing(self) -> None:
        self._drawing = 0

    def pause(self) -> None:
        self.process.replica.restart()
        self._drawing = 0

    def _next(self, series: int) -> None:
        if series and series == self._drawing:
            self.process.world.at(self.step_s, self.process, lambda: self._micro_batch(series))

    def _micro_batch(self, series: int) -> None:
        if series == self._drawing:
            self.process.replica.draw(self.micro_batch)
            self.process.progressed()
            self._next(series)
