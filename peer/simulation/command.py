"""`dugnad simulate`: production's peers in virtual time, under seeded faults, checked by an observer.

The checks, by name:

    1 order, bytes, state                      one history
    2 once, base, given, mean, weight, frozen once   honest sums
    3 whole, ready, promises, ballots, asks    whole commits only
    4 heavier, liveness                        forks heal
    5 one kill, end, reach                     no single point; a run ends with its last epoch; the unreachable reduce nothing
    4 lies                                     beside liars, the honest peers commit again and again
    8 history                                  nobody stands where liars alone voted, while the others commit
    7 attempts, contributions, peers, forks    every absence has a reason
    0 crash                                    no process ends by an error that nobody foresaw

Signatures are simulated: cheap, and nobody else's. "3 asks" checks that a new leader asked or heard every member, but not
that it adopted all that it could have reached. "4 liveness" demands what docs/PROTOCOL.md promises under "Stragglers". "7
contributions" passes a contribution that a commit names but its own peer could not fetch, once that peer stands further on: the
peer cannot tell whether the commit is an ancestor. A state that drifted while its peer was cut off may win: "1 state" then
follows it.
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
MAX_HOSTILE = 0.25


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
    hostile: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=MAX_HOSTILE,
            help="Share of the machines whose peers lie, each in one way that the seed draws: about its samples, its promises, "
            "its speed, other peers, its state. Above 0 it is one machine at least, and never the first, the organiser's. The "
            "others must keep every invariant among themselves, and go on committing.",
        ),
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Run the round's state machines under seeded faults in virtual time and check the invariants; exit code 1 on a violation."""
    chosen = seeds_of(seeds)
    from peer.simulation.sweep import Summary, seed_results  # torch takes seconds: a wrong option should not wait for it

    summary, began = Summary(), time.perf_counter()
    columns = (TextColumn("seeds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=len(chosen))
        for seed_result in seed_results(chosen, peers, min(workers, len(chosen)), hostile):
            summary.add(seed_result)
            progress.update(bar, advance=1, description=f"{summary.commits} commits, {len(summary.violations)} violations")
    wall_s = time.perf_counter() - began
    summary.shrink_violations(peers, hostile)
    if as_json:
        print(json.dumps(summary.to_json(wall_s)))
    else:
        _print(summary, wall_s, peers, hostile)
    if summary.violations:
        raise typer.Exit(1)


def _print(summary: Summary, wall_s: float, peers: int, hostile: float) -> None:
    numbers = summary.to_json(wall_s)
    print(f"seeds       {summary.seeds} of {peers} peers in {wall_s:.1f} s, {numbers['virtual_hours']} virtual hours")
    print(f"commits     {summary.commits} (median {numbers['median_commits']:g} a seed), attempts retried {summary.retries}")
    print(f"faults      {sum(summary.faults.values())} (median {numbers['median_faults']:g} a seed)")
    for kind, count in sorted(summary.faults.items()):
        print(f"              {count:7d} {kind}")
    if hostile:
        print(f"liars       {sum(summary.lies.values())}, telling")
        for lie, count in sorted(summary.lies.items()):
            print(f"              {count:7d} {lie}")
    codecs = ", ".join(f"{count} in {codec}" for codec, count in sorted(summary.codecs.items()))
    print(f"codecs      {codecs}; {summary.codec_changes} commits name another for the next")
    print(f"overtaken   {summary.overtaken} messages, by later ones on other connections")
    print(f"forks       {summary.forks_lost} times a peer told what it lost with a lineage that it left")
    print(f"donors      {summary.donors_failed} failed or lied to a peer that was catching up")
    print(f"slow lines  {summary.starved} seeds in which nothing else could bring the commits to who was behind, to the end")
    print(f"longest     {summary.longest_after_kill_s:.1f} s from a single kill to a commit")
    print(f"            {summary.longest_recovery_s:.1f} s from the last fault to one lineage and two commits")
    if hostile:
        print(f"            {summary.longest_among_liars_s:.1f} s from one commit to the next beside liars alone")
    print(f"trace       {summary.trace_digest}")
    print(f"violations  {len(summary.violations)}")
    for seed_result in summary.violations:
        print(f"\nseed {seed_result.seed} violates invariant {seed_result.violated}: {seed_result.what}", file=sys.stderr)
        if seed_result.liars:
            print("its liars: " + ", ".join(f"{peer} ({lie})" for peer, lie in seed_result.liars.items()), file=sys.stderr)
        print("its faults, shrunken as far as possible:" if seed_result.schedule else "without any fault", file=sys.stderr)
        print("\n".join(f"  {fault}" for fault in seed_result.schedule), file=sys.stderr)
        print("what happened last:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in seed_result.trace), file=sys.stderr)
        again = f"again: dugnad simulate --seeds {seed_result.seed}:{seed_result.seed + 1} --peers {peers}"
        print(again + (f" --hostile {hostile:g}" if hostile else ""), file=sys.stderr)
