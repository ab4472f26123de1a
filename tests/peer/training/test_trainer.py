"""The loop, one micro-batch at a time, as a simulator drives it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from peer.training.gradient_pass import GradientPass
from peer.training.job_queue import JobQueue
from peer.training.trainer import RATE_SHARE, Trainer
from tests.peer.training.test_overlap import frozen_of, replicas
from tests.replicas import Data, SquaredError

SAMPLES = 3
Progress = list[tuple[int, int, float, float]]


def trainer(clock: Callable[[], float], **options: Any) -> tuple[Trainer, Progress]:
    told: Progress = []
    (it,), source = replicas(1, overlap=False), Data.make(torch.float64).batches("ann", SAMPLES)
    task: Any = SquaredError()
    batches: Any = source
    over = GradientPass(task, it.model, torch.device("cpu"))
    how = {"progressed": lambda *what: told.append(what), "clock": clock, **options}
    return Trainer(it, JobQueue(), gradient_pass=over, batches=batches, **how), told


def test_each_micro_batch_is_counted_and_its_speed_is_a_moving_average() -> None:
    times = iter([0.0, 1.0, 10.0, 13.0])
    it, told = trainer(lambda: next(times))
    it.resume()
    it.micro_batch()
    it.micro_batch()
    averaged = (RATE_SHARE * 3.0 + (1 - RATE_SHARE) * 1.0) / SAMPLES
    assert told == [(0, 3, 3.0, 1.0), (0, 6, pytest.approx(1 / averaged), 3.0)]


def test_the_clock_changes_no_result() -> None:
    frozen = []
    for clock in (lambda: 0.0, itertools.count(5.0, 0.25).__next__):
        it, told = trainer(clock)
        it.resume()
        for _ in range(4):
            it.micro_batch()
        frozen.append(bytes(frozen_of(it.replica).encoded))
        assert told[-1][:2] == (0, 12)
        assert told[-1][2] == (0.0 if not told[-1][3] else SAMPLES / 0.25)
    assert frozen[0] == frozen[1]


def test_a_trainer_draws_from_resume_to_freeze() -> None:
    it, _ = trainer(lambda: 0.0)
    assert not it.is_drawing
    it.resume()
    assert it.is_drawing
    it.micro_batch()
    assert it.freeze() is not None
    assert not it.is_drawing


def test_a_trainer_rests_for_the_share_of_the_time_that_it_must_not_use() -> None:
    """A micro-batch takes 0.25 s: at a load of a quarter, the next begins no sooner than 1 s after it."""
    now, began = 0.0, []

    def clock() -> float:
        nonlocal now
        now += 0.25
        return now

    it, _ = trainer(clock, load=0.25)
    it.resume()

    def one_of_four(*what: Any) -> None:
        began.append(now)
        if len(began) == 4:
            it.stop()

    it._progressed = one_of_four
    it.run()
    assert all(after - before >= 1.0 for before, after in itertools.pairwise(began)), began
