"""The simulator itself: deterministic, clean without faults and with them, and rich enough to mean something."""

from __future__ import annotations

import statistics
from collections import Counter

import pytest

from peer.simulation.faults import KINDS, PHASES
from peer.simulation.observer import Observer
from peer.simulation.scenario import ALL_KINDS, simulate
from peer.simulation.sweep import Summary, outcomes
from protocols.gradients.codecs import CODECS

SEEDS = range(200)
PEERS = 6


def test_one_seed_is_one_trace() -> None:
    first, second, other = simulate(3), simulate(3), simulate(4)
    assert (first.trace_digest, first.commits, first.faults) == (second.trace_digest, second.commits, second.faults)
    assert other.trace_digest != first.trace_digest


def test_workers_do_not_change_the_sum() -> None:
    alone, together = Summary(), Summary()
    for outcome in outcomes(range(6), PEERS, 1):
        alone.add(outcome)
    for outcome in outcomes(range(6), PEERS, 2):
        together.add(outcome)
    assert alone.to_json(0) == together.to_json(0)


@pytest.mark.parametrize("seed", range(4))
def test_without_faults_nothing_is_retried_and_everybody_commits(seed: int) -> None:
    outcome = simulate(seed, faults=False)
    assert (outcome.violated, outcome.retries, sum(outcome.faults.values())) == ("", 0, 0)
    assert outcome.commits >= 10


@pytest.mark.timeout(600)  # a minute alone on two cores
def test_seeded_faults_break_no_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    summary = Summary()
    donors: Counter[int] = Counter()  # how many brought chunks of a snapshot -> how often
    monkeypatch.setattr(Observer, "downloaded", lambda observer, process, chunks: donors.update([len(chunks)]))
    for outcome in outcomes(SEEDS, PEERS, 1):
        summary.add(outcome)
    assert [(o.seed, o.violated, o.what) for o in summary.violations] == []
    assert statistics.median(summary.commits_by_seed) >= 10
    assert statistics.median(summary.faults_by_seed) >= 5
    assert summary.overtaken > 0
    assert set(summary.codecs) == set(CODECS) and summary.codec_changes >= 20, (summary.codecs, summary.codec_changes)
    assert set(ALL_KINDS) <= set(summary.faults)
    assert {f"{kind} @ {phase}" for kind in KINDS for phase in PHASES} <= set(summary.faults_at)
    assert sum(donors.values()) >= 100 and sum(often for many, often in donors.items() if many > 1) >= 20, donors
