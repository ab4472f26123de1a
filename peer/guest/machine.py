"""One look at the machine after another: battery, use by others, bytes moved today, and whether it slept in between."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import time
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path

import psutil
import torch

from peer.guest import pausing
from peer.guest.manners import Manners, Moment, Pause, pause_at
from peer.guest.person import untouched_s
from protocols.host.files import write_durably

LOOK_EVERY_S = 5.0  # whether the computer is in use: to ask costs milliseconds
WRITE_EVERY_BYTES = 10_000_000
# Less is a busy machine.
ASLEEP_S = 5.0


class Guest:
    """What a peer asks every so often: may I work now?"""

    def __init__(
        self,
        manners: Manners,
        home: Path,
        now: Callable[[], datetime] = datetime.now,
        *,
        gpu_is_used: Callable[[], bool] = lambda: False,
        untouched_s: Callable[[], float | None] = untouched_s,
    ) -> None:
        """`now`: local time. `gpu_is_used`: by other programs."""
        self._manners = manners
        self._home = home
        self._now = now
        self._gpu_is_used = gpu_is_used
        self._untouched_s = untouched_s
        self._looked_at: datetime | None = None
        self._in_use: tuple[float | None, bool] = (None, False)
        self._day = _Day(home / "transfer.json", now().date())

    def pause(self) -> Pause | None:
        """None if it may."""
        now = self._now()
        paused, until = pausing.asked(self._home)
        untouched, gpu_is_used = self._use(now)
        moment = Moment(
            at=now,
            paused=paused,
            paused_until=until,
            on_battery=on_battery(),
            untouched_s=untouched,
            gpu_is_used=gpu_is_used,
            transferred_bytes=self._day.bytes_on(now.date()),
        )
        return pause_at(moment, self._manners)

    def _use(self, now: datetime) -> tuple[float | None, bool]:
        """(seconds since somebody used the computer, whether others use the GPU), as of the last look."""
        if self._looked_at is None or (now - self._looked_at).total_seconds() >= LOOK_EVERY_S:
            self._looked_at = now
            asked = self._manners.untouched_s is not None
            self._in_use = (self._untouched_s() if asked else None, self._gpu_is_used())
        return self._in_use

    def transferred(self, size: int) -> None:
        """So many bytes more."""
        self._day.add(self._now().date(), size)


class _Day:
    """Bytes moved in one day. A restart loses at most WRITE_EVERY_BYTES of the count."""

    def __init__(self, file: Path, day: date) -> None:
        self._file = file
        self._day, self._bytes = day, 0
        try:
            kept = json.loads(file.read_bytes())
            if kept["day"] == day.isoformat():
                self._bytes = int(kept["bytes"])
        except (OSError, ValueError, TypeError, KeyError):
            pass
        self._written = self._bytes

    def bytes_on(self, day: date) -> int:
        return self._bytes if day == self._day else 0

    def add(self, day: date, size: int) -> None:
        if day != self._day:
            self._day, self._bytes, self._written = day, 0, 0
        self._bytes += size
        if self._bytes - self._written >= WRITE_EVERY_BYTES:
            self._written = self._bytes
            write_durably(self._file, json.dumps({"day": day.isoformat(), "bytes": self._bytes}).encode())


def on_battery() -> bool:
    """False where there is none, or the system does not tell."""
    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError, RuntimeError):
        return False
    return battery is not None and battery.power_plugged is False


def give_memory_back() -> None:
    """To the system, what is no longer in use: other programs may want it now."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # only the GNU library keeps it until it is told
        ctypes.CDLL(None).malloc_trim(0)


class Naps:
    """Notices from one call to the next that the computer slept, or that this process stood still."""

    def __init__(self, awake: Callable[[], float] = time.monotonic, wall: Callable[[], float] | None = None) -> None:
        """`awake` does not count sleep, `wall` does."""
        self._awake, self._wall = awake, wall or _wall_clock()
        self._before = (self._awake(), self._wall())

    def since(self, expected_s: float) -> str:
        """What happened since the last call, which was to be `expected_s` seconds ago; '' if nothing."""
        (awake_before, wall_before), (awake, wall) = self._before, (self._awake(), self._wall())
        self._before = (awake, wall)
        asleep_s = (wall - wall_before) - (awake - awake_before)
        stopped_s = awake - awake_before - expected_s
        if asleep_s >= ASLEEP_S:
            return f"this computer was asleep for {asleep_s:.0f} s"
        if stopped_s >= ASLEEP_S:
            return f"this program stood still for {stopped_s:.0f} s"
        return ""


def _wall_clock() -> Callable[[], float]:
    """Linux has a clock that counts sleep and cannot be set."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.time if boot is None else lambda: time.clock_gettime(boot)
