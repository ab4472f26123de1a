"""The simulator itself: deterministic, clean without faults and with them, and rich enough to mean something."""

from __future__ import annotations

import statistics
from collections import Counter

import pytest

from peer.simulation.faults import KINDS, PHASES
from peer.simulation.observer import Observer
from peer.simulation.scenario import ALL_KINDS, MAX_EPOCHS, simulate
from peer.simulation.sweep import Summary, seed_results
from protocols.gradients.codecs import CODECS

SEEDS, FEW_SEEDS = range(200), range(16)
PEERS = 6


def test_one_seed_is_one_trace() -> None:
    first, second, other = simulate(3), simulate(3), simulate(4)
    assert (first.trace_digest, first.commits, first.faults) == (second.trace_digest, second.commits, second.faults)
    assert other.trace_digest != first.trace_digest


def test_workers_do_not_change_the_sum() -> None:
    alone, together = Summary(), Summary()
    for seed_result in seed_results(range(6), PEERS, 1):
        alone.add(seed_result)
    for seed_result in seed_results(range(6), PEERS, 2):
        together.add(seed_result)
    assert alone.to_json(0) == together.to_json(0)


@pytest.mark.parametrize("seed", range(4))
def test_without_faults_nothing_is_retried_and_everybody_commits(seed: int) -> None:
    seed_result = simulate(seed, faults=False)
    assert (seed_result.violated, seed_result.retries, sum(seed_result.faults.values())) == ("", 0, 0)
    assert seed_result.commits >= 10


def test_a_run_ends_with_its_last_epoch() -> None:
    seed_result = simulate(6, faults=False)
    assert (seed_result.violated, seed_result.commits) == ("", MAX_EPOCHS)


def swept(seeds: range, monkeypatch: pytest.MonkeyPatch) -> tuple[Summary, Counter[int]]:
    """The sum over these seeds, and how many donors brought chunks of a snapshot -> how often."""
    summary, donors = Summary(), Counter[int]()
    monkeypatch.setattr(Observer, "downloaded", lambda observer, process, chunks: donors.update([len(chunks)]))
    for seed_result in seed_results(seeds, PEERS, 1):
        summary.add(seed_result)
    assert [(it.seed, it.violated, it.what) for it in summary.violations] == []
    return summary, donors


def test_a_few_seeds_of_faults_break_no_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    swept(FEW_SEEDS, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(900)  # two minutes and a half alone on two cores
def test_seeded_faults_break_no_invariant_and_are_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    summary, donors = swept(SEEDS, monkeypatch)
    assert statistics.median(summary.commits_by_seed) >= 10
    assert statistics.median(summary.faults_by_seed) >= 5
    assert summary.overtaken > 0
    assert set(summary.codecs) == set(CODECS) and summary.codec_changes >= 20, (summary.codecs, summary.codec_changes)
    assert set(ALL_KINDS) <= set(summary.faults)
    assert {f"{kind} @ {phase}" for kind in KINDS for phase in PHASES} <= set(summary.faults_at)
    assert sum(donors.values()) >= 100 and sum(often for many, often in donors.items() if many > 1) >= 20, donors
    assert summary.forks_lost >= 20 and summary.donors_failed >= 20, (summary.forks_lost, summary.donors_failed)
