"""The volunteer's training loop: the whole story of a peer, on the main thread.

The loop draws a micro-batch, hands its gradient to the strategy, and tells the engine how many samples there are. Between two
micro-batches it does the engine's jobs: freeze the contribution when the leader plans, apply a commit, capture or restore a
snapshot. From the freeze to the commit it draws nothing, unless the run overlaps. The loop decides nothing about the swarm.
No other thread touches a tensor.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from peer.training.gradient_pass import GradientPass
from peer.training.job_queue import JobQueue
from peer.training.replica import Frozen, Replica
from protocols.tasks.base import Batches

Progressed = Callable[[int, int, float, float], None]
"""(first, end of the accumulated samples; samples/s, 0 while unknown; seconds of the micro-batch)"""

IDLE_WAIT_S = 0.1
# The share of the newest micro-batch in the moving average of the speed.
RATE_SHARE = 0.2


class Trainer:
    """The training side of one peer; one a process. An auxiliary peer has no `gradient_pass` and no `batches`: it only holds
    state."""

    def __init__(
        self,
        replica: Replica,
        jobs: JobQueue,
        *,
        gradient_pass: GradientPass | None,
        batches: Batches | None,
        progressed: Progressed,
        load: float = 1.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`load`: the share of the time in which it computes.

        `clock`, in seconds, measures speed and rest alone: no result depends on it.
        """
        self.replica = replica
        self.jobs = jobs
        self._gradient_pass = gradient_pass
        self._batches = batches
        self._progressed = progressed
        self._load = load
        self._clock = clock
        self._rests_until = 0.0
        self._drawing = False
        self._stopped = False
        self._seconds_per_sample = 0.0

    def run(self) -> None:
        """Train until stop(). Raises what the model or the data raise: a peer that cannot train must say so."""
        while not self._stopped:
            rest_s = max(0.0, self._rests_until - self._clock())
            job = self.jobs.next(wait_s=min(rest_s, IDLE_WAIT_S) if self._drawing else IDLE_WAIT_S)
            if job is not None:
                job.run()
            elif self._drawing and self._clock() >= self._rests_until:
                self.micro_batch()

    def stop(self) -> None:
        """From any thread: run() returns after the micro-batch or the job under way."""
        self._stopped = True

    @property
    def is_drawing(self) -> bool:
        """Whether the next turn of the loop draws a micro-batch, once no job waits."""
        return self._drawing

    def micro_batch(self) -> None:
        """Draw one micro-batch and accumulate it. Raises what the model or the data raise."""
        assert self._gradient_pass is not None and self._batches is not None
        began = self._clock()
        strategy = self.replica.strategy
        if not strategy.samples:
            self._gradient_pass.begin()
        samples, loss_sum = self._gradient_pass(next(self._batches))
        strategy.after_backward(samples, loss_sum)
        ended = self._clock()
        seconds = (ended - began) / self._load  # with the rest that follows
        self._rests_until = began + seconds if self._load < 1 else ended
        self._progressed(strategy.first, strategy.end, self._rate_after(samples, seconds), seconds)

    def _rate_after(self, samples: int, seconds: float) -> float:
        """Samples a second, as a moving average over micro-batches; 0 before the clock has moved."""
        newest, before = seconds / samples, self._seconds_per_sample
        self._seconds_per_sample = newest if not before else RATE_SHARE * newest + (1 - RATE_SHARE) * before
        return 1 / self._seconds_per_sample if self._seconds_per_sample else 0.0

    # -- jobs of the engine ----------------------------------------------------------------------------------------------------

    def freeze(self) -> Frozen | None:
        self._drawing = self._drawing and self.replica.settings.overlap
        if self._gradient_pass is not None and self.replica.strategy.samples:
            self._gradient_pass.gather()
        return self.replica.freeze()

    def resume(self) -> None:
        self.replica.strategy.restart()
        self._drawing = self._batches is not None

    def pause(self) -> None:
        self.replica.strategy.restart()
        self._drawing = False
