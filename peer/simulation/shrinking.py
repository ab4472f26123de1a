"""From a seed that violates an invariant to the fewest faults that still do: delta debugging (Zeller and Hildebrandt, 2002)."""

from __future__ import annotations

from collections.abc import Iterator

from peer.simulation.faults import Schedule
from peer.simulation.scenario import SeedResult, simulate

MAX_RUNS = 60


def shrink(seed_result: SeedResult, peers: int, *, hostile: float = 0.0, max_runs: int = MAX_RUNS) -> SeedResult:
    """The seed_result of the same seed with a part of the faults of `seed_result`, violating the same invariant.

    Leaving out any single one of those faults, it does not, unless `max_runs` simulations did not get that far.
    """
    runs = 0

    def again(schedule: Schedule) -> SeedResult | None:
        nonlocal runs
        if runs == max_runs:
            return None
        runs += 1
        shrunken = simulate(seed_result.seed, peers, schedule=schedule, hostile=hostile)
        return shrunken if shrunken.violated == seed_result.violated else None

    if not seed_result.schedule:
        return seed_result
    without_any = again(())
    if without_any is not None:
        return without_any
    parts = 2
    while len(seed_result.schedule) > 1 and runs < max_runs:
        attempts = map(again, _with_less(seed_result.schedule, parts))
        found = next((shrunken for shrunken in attempts if shrunken is not None), None)
        if found is not None:
            seed_result, parts = found, max(parts - 1, 2)
        elif parts >= len(seed_result.schedule):
            break
        else:
            parts = min(2 * parts, len(seed_result.schedule))
    return seed_result


def _with_less(schedule: Schedule, parts: int) -> Iterator[Schedule]:
    """The schedule with one after another of `parts` pieces left out."""
    for part in range(parts):
        start, stop = (len(schedule) * edge // parts for edge in (part, part + 1))
        yield schedule[:start] + schedule[stop:]
