"""The volunteer's training loop: the whole story of a peer, on the main thread.

Draw a micro-batch, add its gradient to the epoch's sum, tell the network's thread, and do what that thread hands over in
between: freeze the
sum when the leader plans, apply the averaged gradient when the epoch is committed, capture or restore a snapshot. From the freeze
to the commit it waits, unless the run overlaps. The swarm decides nothing here, and no tensor is touched anywhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from peer.training.devices import autocast
from peer.training.job_queue import JobQueue
from peer.training.replica import Frozen, Replica
from protocols.tasks.base import Batches, Task, to_device

Progressed = Callable[[int, int, float, float], None]  # (first, end of what accumulates; samples/s; seconds of a micro-batch)
IDLE_WAIT_S = 0.1
# The share of the newest micro-batch in the moving average of the speed.
RATE_SHARE = 0.2


class Trainer:
    """One per process. `task` and `batches` are None for an auxiliary peer, which only holds state."""

    def __init__(
        self,
        replica: Replica,
        jobs: JobQueue,
        *,
        task: Task | None,
        batches: Batches | None,
        device: torch.device,
        progressed: Progressed,
    ) -> None:
        self.replica = replica
        self._jobs = jobs
        self._task = task
        self._batches = batches
        self._device = device
        self._progressed = progressed
        self._drawing = False
        self._stopped = False
        self._seconds_per_sample = 0.0

    def run(self) -> None:
        """Train until stop(). Raises what the model or the data raise: a peer that cannot train must say so."""
        while not self._stopped:
            job = self._jobs.next(wait_s=0.0 if self._drawing else IDLE_WAIT_S)
            if job is not None:
                job.run()
            elif self._drawing:
                self._micro_batch()

    def stop(self) -> None:
        """From any thread: run() returns after the micro-batch or the job under way."""
        self._stopped = True

    # -- handed over by the network's thread -----------------------------------------------------------------------------------

    def freeze(self) -> Frozen | None:
        self._drawing = self._drawing and self.replica.overlap
        return self.replica.freeze()

    def resume(self) -> None:
        self.replica.restart()
        self._drawing = self._batches is not None

    def pause(self) -> None:
        self.replica.restart()
        self._drawing = False

    # -- training --------------------------------------------------------------------------------------------------------------

    def _micro_batch(self) -> None:
        assert self._task is not None and self._batches is not None
        began = time.perf_counter()
        batch = to_device(next(self._batches), self._device)
        self.replica.model.train()
        with autocast(self._device):
            loss = self._task.loss(self.replica.model, batch)  # sum over the micro-batch's samples
        loss.backward()  # type: ignore[no-untyped-call]
        samples = self._task.samples_in(batch)
        self.replica.accumulator.add(samples, float(loss.detach()))  # waits for the device: what is counted is done
        seconds = time.perf_counter() - began
        newest = seconds / samples
        self._seconds_per_sample = (
            newest if not self._seconds_per_sample else (RATE_SHARE * newest + (1 - RATE_SHARE) * self._seconds_per_sample)
        )
        accumulator = self.replica.accumulator
        self._progressed(accumulator.first, accumulator.end, 1 / self._seconds_per_sample, seconds)
