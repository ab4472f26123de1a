"""Looks at the machine: bytes of the day, battery, sleep."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from peer.guest import pausing
from peer.guest.machine import ASLEEP_S, WRITE_EVERY_BYTES, Guest, Naps, on_battery
from peer.guest.manners import Manners

TODAY, TOMORROW = datetime(2026, 11, 25, 12, 0), datetime(2026, 11, 26, 0, 1)
LIMITED = Manners(max_transfer_bytes=3.0 * WRITE_EVERY_BYTES)


def test_bytes_count_for_a_day_also_over_a_restart(tmp_path: Path) -> None:
    now = TODAY
    guest = Guest(LIMITED, tmp_path, lambda: now)
    guest.transferred(2 * WRITE_EVERY_BYTES)
    assert guest.pause() is None
    again = Guest(LIMITED, tmp_path, lambda: now)
    again.transferred(WRITE_EVERY_BYTES)
    assert again.pause() is not None
    now = TOMORROW
    assert again.pause() is None
    again.transferred(WRITE_EVERY_BYTES)
    assert again.pause() is None


def test_yesterdays_count_and_one_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    Guest(LIMITED, tmp_path, lambda: TODAY).transferred(5 * WRITE_EVERY_BYTES)
    assert Guest(LIMITED, tmp_path, lambda: TOMORROW).pause() is None
    (tmp_path / "transfer.json").write_text("{")
    assert Guest(LIMITED, tmp_path, lambda: TODAY).pause() is None


def test_the_owners_pause_is_seen(tmp_path: Path) -> None:
    guest = Guest(Manners(), tmp_path, lambda: TODAY)
    pausing.ask(tmp_path, None)
    assert guest.pause() is not None
    pausing.end(tmp_path)
    assert guest.pause() is None


@pytest.mark.parametrize(
    ("battery", "expected"),
    [
        (SimpleNamespace(power_plugged=False), True),
        (SimpleNamespace(power_plugged=True), False),
        (SimpleNamespace(power_plugged=None), False),
        (None, False),
    ],
)
def test_a_battery_counts_while_it_is_known_to_be_in_use(battery: Any, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert on_battery() is expected


def test_sleep_and_standing_still_are_told_apart() -> None:
    awake, wall = 100.0, 5000.0
    naps = Naps(lambda: awake, lambda: wall)

    def passes(awake_s: float, wall_s: float) -> str:
        nonlocal awake, wall
        awake, wall = awake + awake_s, wall + wall_s
        return naps.since(1.0)

    assert passes(1.0, 1.0) == ""
    assert passes(1.0 + ASLEEP_S / 2, 1.0 + ASLEEP_S / 2) == "", "a busy machine"
    assert passes(1.0, 15.0) == "this computer was asleep for 14 s"
    assert passes(21.0, 21.0) == "this program stood still for 20 s"
    assert passes(1.0, 1.0) == ""
