"""`dugnad simulate`: seeded fault schedules against the protocol's own state machines, checked by an observer.

What is checked, by name: 1 order, 1 bytes, 1 state; 2 once, 2 base, 2 given, 2 mean, 2 weight, 2 frozen once; 3 whole,
3 ready, 3 promises, 3 ballots, 3 asks; 4 heavier, 4 liveness; 5 one kill; 7 attempts, 7 contributions, 7 peers.

Not simulated: signatures. "3 asks" checks that a new leader asked or heard every member, not that it adopted all that it could
have reached. "4 liveness" demands what docs/PROTOCOL.md promises ("Behind"), where whoever is level can bring a commit to all the
others in about the time of an epoch. "7 contributions" lets pass what a commit names that its own peer could not fetch, once
that peer stands further on: it cannot tell whether the commit is an ancestor.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from protocols.errors import SpecError

if TYPE_CHECKING:
    from peer.simulation.sweep import Summary

FEWEST_PEERS, MAX_PEERS = 4, 64


def seeds_of(text: str) -> range:
    """`n`: the first n seeds; `a:b`: a up to b, b left out. Raises SpecError."""
    try:
        numbers = [int(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers = [0, *numbers]
    if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1]:
        raise SpecError(f"no seeds: {text!r}", remedy="Give a number (the first 2000) or a range (100:200, the last left out).")
    return range(*numbers)


def simulate(
    seeds: Annotated[str, typer.Option(help="How many seeds, or which: 2000, or 100:200 (the last left out).")] = "200",
    peers: Annotated[int, typer.Option(min=FEWEST_PEERS, max=MAX_PEERS, help="Machines in a swarm.")] = 8,
    workers: Annotated[int, typer.Option(min=1, help="Processes that simulate at once; the result does not depend on it.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Run the round's state machines under seeded faults in virtual time and check the invariants; exit code 1 on a violation."""
    chosen = seeds_of(seeds)
    from peer.simulation.sweep import Summary, outcomes  # torch takes seconds: a wrong option should not wait for it

    summary, began = Summary(), time.perf_counter()
    columns = (TextColumn("seeds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=len(chosen))
        for outcome in outcomes(chosen, peers, min(workers, len(chosen))):
            summary.add(outcome)
            progress.update(bar, advance=1, description=f"{summary.commits} commits, {len(summary.violations)} violations")
    wall_s = time.perf_counter() - began
    summary.shrink_violations(peers)
    if as_json:
        print(json.dumps(summary.to_json(wall_s)))
    else:
        _print(summary, wall_s, peers)
    if summary.violations:
        raise typer.Exit(1)


def _print(summary: Summary, wall_s: float, peers: int) -> None:
    numbers = summary.to_json(wall_s)
    print(f"seeds       {summary.seeds} of {peers} peers in {wall_s:.1f} s, {numbers['virtual_hours']} virtual hours")
    print(f"commits     {summary.commits} (median {numbers['median_commits']:g} a seed), attempts retried {summary.retries}")
    print(f"faults      {sum(summary.faults.values())} (median {numbers['median_faults']:g} a seed)")
    for kind, count in sorted(summary.faults.items()):
        print(f"              {count:7d} {kind}")
    codecs = ", ".join(f"{count} in {codec}" for codec, count in sorted(summary.codecs.items()))
    print(f"codecs      {codecs}; {summary.codec_changes} commits name another for the next")
    print(f"overtaken   {summary.overtaken} messages, by later ones on other connections")
    print(f"longest     {summary.longest_after_kill_s:.1f} s from a single kill to a commit")
    print(f"            {summary.longest_recovery_s:.1f} s from the last fault to one lineage and two commits")
    print(f"trace       {summary.trace_digest}")
    print(f"violations  {len(summary.violations)}")
    for outcome in summary.violations:
        print(f"\nseed {outcome.seed} violates invariant {outcome.violated}: {outcome.what}", file=sys.stderr)
        print("its faults, shrunken as far as possible:" if outcome.schedule else "without any fault", file=sys.stderr)
        print("\n".join(f"  {fault}" for fault in outcome.schedule), file=sys.stderr)
        print("what happened last:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in outcome.trace), file=sys.stderr)
        print(f"again: dugnad simulate --seeds {outcome.seed}:{outcome.seed + 1} --peers {peers}", file=sys.stderr)
