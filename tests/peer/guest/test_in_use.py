"""Whether somebody or another program uses the computer, by what systems say."""

from __future__ import annotations

import os
import sys
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from peer.config import PeerConfig
from peer.guest import gpu, person
from peer.guest.gpu import QUIET_S, GpuUse
from peer.guest.machine import LOOK_EVERY_S, Guest
from peer.guest.manners import Manners, Moment, Pause, pause_at
from protocols.errors import UsageError
from protocols.identity import Ticket

NOW = datetime(2026, 11, 25, 12, 0)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("IdleHint=no\nIdleSinceHint=1000000000\n", 0.0),
        ("IdleHint=yes\nIdleSinceHint=940000000\n", 60.0),
        ("IdleHint=yes\nIdleSinceHint=1700000000\n", 0.0),
        ("", None),
    ],
    ids=["in use", "for a minute", "a clock set back", "no seat"],
)
def test_systemds_seat_says_since_when_nobody_uses_it(said: str, seconds: float | None) -> None:
    assert person._logind_s(said, now=1000.0) == seconds


def test_macs_count_from_the_last_key() -> None:
    assert person._mac_s('  | |   "HIDIdleTime" = 12500000000\n') == 12.5
    assert person._mac_s("nothing") is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other commands")
def test_a_system_without_an_answer_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert person.untouched_s() is None
    command = tmp_path / "loginctl"
    command.write_text("#!/bin/sh\necho IdleHint=no\n")
    command.chmod(0o755)
    assert person.untouched_s() == 0.0


def test_an_owner_who_asks_for_it_in_vain_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.config.untouched_s", lambda: None)
    ticket = Ticket(("127.0.0.1",), 1, bytes(32), bytes(16))
    with pytest.raises(UsageError, match="does not tell whether somebody uses it"):
        PeerConfig(ticket=ticket, untouched=5).check()
    PeerConfig(ticket=ticket).check()


def test_it_pauses_beside_somebody_only_if_it_was_told_to() -> None:
    assert pause_at(Moment(at=NOW, untouched_s=59.0), Manners(untouched_s=60.0)) == Pause("somebody uses this computer")
    assert pause_at(Moment(at=NOW, untouched_s=60.0), Manners(untouched_s=60.0)) is None
    assert pause_at(Moment(at=NOW, untouched_s=0.0), Manners()) is None
    assert pause_at(Moment(at=NOW), Manners(untouched_s=60.0)) is None


def test_it_leaves_the_gpu_to_other_programs_unless_it_was_told_to_share() -> None:
    assert pause_at(Moment(at=NOW, gpu_is_used=True), Manners()) == Pause("another program uses the GPU")
    assert pause_at(Moment(at=NOW, gpu_is_used=True), Manners(share_gpu=True)) is None


def test_the_system_is_asked_every_few_seconds_and_of_a_person_only_for_an_owner_who_wants_it(tmp_path: Path) -> None:
    now, asked = NOW, []

    def untouched_s() -> float | None:
        asked.append(now)
        return 0.0

    def guest(**manners: Any) -> Guest:
        return Guest(Manners(**manners), tmp_path, lambda: now, untouched_s=untouched_s)

    assert guest().pause() is None and not asked
    it = guest(untouched_s=60.0)
    for second in range(int(LOOK_EVERY_S) + 1):
        now = NOW + timedelta(seconds=second)
        assert it.pause() is not None
    assert asked == [NOW, NOW + timedelta(seconds=LOOK_EVERY_S)]


class Driver:
    """NVIDIA's, as far as it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.listed, self.samples = 0.0, [os.getpid()], dict[int, int]()
        self.fails = False
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", self.processes)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetProcessUtilization", self.utilization)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
        self.use = GpuUse(torch.device("cuda"), lambda: self.now)

    def processes(self, handle: str) -> list[Any]:
        assert handle == "GPU-1-2"
        return [SimpleNamespace(pid=pid) for pid in self.listed]

    def utilization(self, handle: str, since_us: int) -> list[Any]:
        if self.fails:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return [SimpleNamespace(pid=pid, smUtil=percent) for pid, percent in self.samples.items()]


def test_other_programs_use_the_gpu_until_they_have_been_quiet_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch)
    me = os.getpid()
    driver.samples = {me: 99, 7: gpu.BUSY_PERCENT - 1}
    assert not driver.use.by_others()
    driver.samples = {me: 50, 7: 15, 8: 15}
    assert driver.use.by_others()
    driver.samples, driver.now = {me: 99}, QUIET_S - 1
    assert driver.use.by_others()
    driver.now = QUIET_S
    assert not driver.use.by_others()


def test_where_the_driver_does_not_tell_nobody_else_uses_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch)
    driver.samples, driver.listed = {7: 99}, [7]
    assert not driver.use.by_others(), "in a container this process is listed under another number, 7 perhaps"
    driver.listed, driver.fails = [os.getpid()], True
    assert not driver.use.by_others()
    assert not GpuUse(torch.device("cpu")).by_others()
    monkeypatch.undo()
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: (_ for _ in ()).throw(pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)))
    assert not GpuUse(torch.device("cuda")).by_others()
