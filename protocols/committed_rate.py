"""How fast a run goes: committed samples per second of wall time over recent epochs, and the time that is left at that pace."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

RECENT_EPOCHS = 8


class CommittedRate:
    """Counts from the first commit that it hears of: the wait for the first volunteer is no part of the pace."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reached: deque[tuple[float, int, int]] = deque(maxlen=RECENT_EPOCHS + 1)  # (clock, epoch, samples in all)

    def reached(self, epoch: int, total_samples: int) -> None:
        """The run stands there now. The same epoch again changes nothing."""
        if epoch == 0 or (self._reached and self._reached[-1][1] == epoch):
            return
        if self._reached and (epoch < self._reached[-1][1] or total_samples < self._reached[-1][2]):
            self._reached.clear()  # another lineage won
        self._reached.append((self._clock(), epoch, total_samples))

    @property
    def samples_per_second(self) -> float | None:
        """None before the second commit. It falls while an epoch takes longer than those before."""
        if len(self._reached) < 2:
            return None
        return (self._reached[-1][2] - self._reached[0][2]) / self._seconds

    @property
    def epoch_s(self) -> float | None:
        """Seconds that an epoch takes at that pace; None before the second commit."""
        if len(self._reached) < 2:
            return None
        return self._seconds / (self._reached[-1][1] - self._reached[0][1])

    def seconds_left(self, max_epochs: int | None) -> float | None:
        """Until the run's last epoch; None without an end, before the second commit, or when the run is complete."""
        an_epoch_s = self.epoch_s
        if max_epochs is None or an_epoch_s is None:
            return None
        last_at, epoch, _ = self._reached[-1]
        if epoch >= max_epochs:
            return None
        return max(1.0, (max_epochs - epoch) * an_epoch_s - min(an_epoch_s, self._clock() - last_at))

    @property
    def _seconds(self) -> float:
        """That the recent epochs took, and by how much the one under way takes longer than they."""
        began, ended = self._reached[0][0], self._reached[-1][0]
        usual_s = (ended - began) / (len(self._reached) - 1)
        return max(ended - began + max(0.0, self._clock() - ended - usual_s), 1e-3)
