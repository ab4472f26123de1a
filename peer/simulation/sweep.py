"""Many seeds: one after another, or by a few processes at once; either way the sum is the same."""

from __future__ import annotations

import hashlib
import multiprocessing
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

from peer.simulation.scenario import Counts, SeedResult, simulate
from peer.simulation.shrinking import shrink

SEEDS_A_TIME = 4
MAX_SHRUNKEN = 3  # violations, of one sweep


def seed_results(seeds: Iterable[int], peers: int, workers: int, hostile: float = 0.0) -> Iterator[SeedResult]:
    """In the order of the seeds. `hostile`: the share of the peers that lie."""
    run = partial(simulate, peers=peers, hostile=hostile)
    if workers == 1:
        yield from map(run, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(run, seeds, SEEDS_A_TIME)


def violation_fields(seed_result: SeedResult) -> dict[str, Any]:
    return {
        "seed": seed_result.seed,
        "invariant": seed_result.violated,
        "what": seed_result.what,
        "liars": dict(seed_result.liars),
        "schedule": [asdict(fault) for fault in seed_result.schedule],
        "trace": seed_result.trace,
    }


@dataclass
class Summary(Counts):
    """The sum over many seeds."""

    seeds: int = 0
    violations: list[SeedResult] = field(default_factory=list)
    commits_by_seed: list[int] = field(default_factory=list)
    faults_by_seed: list[int] = field(default_factory=list)
    longest_recovery_s: float = 0.0
    longest_after_kill_s: float = 0.0
    longest_among_liars_s: float = 0.0

    def __post_init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, seed_result: SeedResult) -> None:
        self.seeds += 1
        for count in fields(Counts):
            setattr(self, count.name, getattr(self, count.name) + getattr(seed_result, count.name))
        self.commits_by_seed.append(seed_result.commits)
        self.faults_by_seed.append(sum(seed_result.faults.values()))
        self.longest_recovery_s = max(self.longest_recovery_s, seed_result.recovery_s)
        self.longest_after_kill_s = max(self.longest_after_kill_s, seed_result.kill_to_commit_s or 0.0)
        self.longest_among_liars_s = max(self.longest_among_liars_s, seed_result.epoch_among_liars_s)
        if seed_result.violated:
            self.violations.append(seed_result)
        self._digest.update(f"{seed_result.seed} {seed_result.trace_digest}\n".encode())

    def shrink_violations(self, peers: int, hostile: float = 0.0) -> None:
        """Leave the first ones with the fewest faults, and the trace of those."""
        shrunken = [shrink(seed_result, peers, hostile=hostile) for seed_result in self.violations[:MAX_SHRUNKEN]]
        self.violations[: len(shrunken)] = shrunken

    @property
    def trace_digest(self) -> str:
        return self._digest.hexdigest()

    def to_json(self, wall_s: float) -> dict[str, Any]:
        return {
            "seeds": self.seeds,
            "violations": [violation_fields(seed_result) for seed_result in self.violations],
            "commits": self.commits,
            "retries": self.retries,
            "faults": dict(sorted(self.faults.items())),
            "faults_at": dict(sorted(self.faults_at.items())),
            "lies": dict(sorted(self.lies.items())),
            "codecs": dict(sorted(self.codecs.items())),
            "codec_changes": self.codec_changes,
            "overtaken": self.overtaken,
            "forks_lost": self.forks_lost,
            "donors_failed": self.donors_failed,
            "starved": self.starved,
            "median_commits": statistics.median(self.commits_by_seed or [0]),
            "median_faults": statistics.median(self.faults_by_seed or [0]),
            "longest_recovery_s": round(self.longest_recovery_s, 3),
            "longest_after_kill_s": round(self.longest_after_kill_s, 3),
            "longest_among_liars_s": round(self.longest_among_liars_s, 3),
            "virtual_hours": round(self.virtual_s / 3600, 3),
            "wall_s": round(wall_s, 3),
            "trace_digest": self.trace_digest,
        }
