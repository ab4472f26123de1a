"""The training thread of a simulated process: production's trainer, with each job and each micro-batch taking virtual time."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from random import Random
from typing import Any

from peer.simulation.world import Owner, World
from peer.training.job_queue import JobQueue
from peer.training.trainer import Trainer

JOB_S = (0.001, 0.03)  # a job takes a time in this range


class NotifyingJobQueue(JobQueue):
    """Says when a job was put."""

    def __init__(self) -> None:
        super().__init__()
        self.notify: Callable[[], None] = lambda: None

    def put(self, act: Callable[[], Any]) -> concurrent.futures.Future[Any]:
        future = super().put(act)
        self.notify()
        return future


class TrainingThread:
    """One thread: jobs and micro-batches, one after another. Jobs go first."""

    def __init__(self, world: World, owner: Owner, random: Random, jobs: NotifyingJobQueue, step_s: float) -> None:
        """`step_s`: seconds of a micro-batch."""
        self._world, self._owner, self._random = world, owner, random
        self._jobs = jobs
        self.step_s = step_s
        self.slowness = 1.0  # of jobs
        self.is_held = False  # it draws nothing until `release`
        self.trainer: Trainer | None = None
        self._is_busy = False
        jobs.notify = self._go_on

    def start(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._go_on()

    def release(self) -> None:
        self.is_held = False
        self._go_on()

    def _go_on(self) -> None:
        trainer = self.trainer
        if self._is_busy or trainer is None:
            return
        job = self._jobs.next(wait_s=0.0)
        if job is not None:
            self._for(self._random.uniform(*JOB_S) * self.slowness, job.run)
        elif trainer.is_drawing and not self.is_held:
            self._for(self.step_s, trainer.micro_batch)

    def _for(self, seconds: float, act: Callable[[], None]) -> None:
        self._is_busy = True

        def ended() -> None:
            self._is_busy = False
            act()
            self._go_on()

        self._world.at(seconds, self._owner, ended)
