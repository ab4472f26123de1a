"""From a seed that violates an invariant to the fewest faults that still do: delta debugging (Zeller and Hildebrandt, 2002)."""

from __future__ import annotations

from collections.abc import Callable

from peer.simulation.faults import Schedule
from peer.simulation.process import SimulatedPeer
from peer.simulation.scenario import Make, Outcome, simulate

MAX_RUNS = 60


def shrink(outcome: Outcome, peers: int, *, make: Make = SimulatedPeer, max_runs: int = MAX_RUNS) -> Outcome:
    """The outcome of the same seed with a part of the faults of `outcome`, violating the same invariant.

    Leaving out any single one of those faults, it does not, unless `most_runs` simulations did not get that far.
    """
    runs = 0

    def again(schedule: Schedule) -> Outcome | None:
        nonlocal runs
        runs += 1
        shrunken = simulate(outcome.seed, peers, schedule=schedule, make=make)
        return shrunken if shrunken.violated == outcome.violated else None

    if not outcome.schedule:
        return outcome
    without_any = again(())
    if without_any is not None:
        return without_any
    parts = 2
    while len(outcome.schedule) > 1 and runs < max_runs:
        found = _with_less(outcome.schedule, parts, again, lambda: runs < max_runs)
        if found is not None:
            outcome, parts = found, max(parts - 1, 2)
        elif parts >= len(outcome.schedule):
            break
        else:
            parts = min(2 * parts, len(outcome.schedule))
    return outcome


def _with_less(
    schedule: Schedule, parts: int, again: Callable[[Schedule], Outcome | None], more: Callable[[], bool]
) -> Outcome | None:
    """The first that still violates: of one of `parts` pieces left out."""
    for part in range(parts):
        if not more():
            return None
        start, stop = (len(schedule) * edge // parts for edge in (part, part + 1))
        found = again(schedule[:start] + schedule[stop:])
        if found is not None:
            return found
    return None
