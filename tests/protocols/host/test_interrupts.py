"""Ctrl-C: at any instant of a process that leaves in order only during some parts of its life."""

from __future__ import annotations

import os
import signal

import pytest

from protocols.host.interrupts import Leaving, two_stage_interrupts


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_calls_what_leaves_at_that_part_and_ends_others_at_once() -> None:
    leaving, calls = Leaving(), []
    with two_stage_interrupts(leaving.ask, lambda: None):
        with leaving.by(lambda: calls.append("training")):
            pass
        with leaving.by(lambda: calls.append("paused")):
            interrupt()
    assert calls == ["paused"]
    leaving = Leaving()
    with two_stage_interrupts(leaving.ask, lambda: None), pytest.raises(KeyboardInterrupt):
        interrupt()
    assert leaving.asked.is_set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ctrl_c_that_a_destructor_swallows_is_acted_on_by_the_next_part() -> None:
    class Interrupted:
        def __del__(self) -> None:
            interrupt()

    leaving, calls = Leaving(), []
    with two_stage_interrupts(leaving.ask, lambda: None):
        Interrupted()
        assert leaving.asked.is_set()
        with leaving.by(lambda: calls.append("left")):
            assert calls == ["left"]


def test_a_terminal_that_is_closed_asks_once_however_often_its_shell_says_so() -> None:
    leaving, calls = Leaving(), []
    with two_stage_interrupts(leaving.ask, lambda: None), leaving.by(lambda: calls.append("left")):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
    assert calls == ["left"]


def test_under_nohup_it_stays() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    leaving = Leaving()
    try:
        with two_stage_interrupts(leaving.ask, lambda: None):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not leaving.asked.is_set()
