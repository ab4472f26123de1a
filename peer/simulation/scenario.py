"""One seed from beginning to end: the swarm starts, things go wrong, things stop going wrong, and the swarm must recover."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from peer.simulation.faults import FAULTS_S, KINDS, LONGEST_S, PATIENCE_S, Fault, Schedule, draw
from peer.simulation.liars import LIES, draw_liars
from peer.simulation.problem import LOCAL_REGRESSION, REGRESSION
from peer.simulation.swarm import SLOW_BYTES_S, Swarm
from peer.simulation.world import ViolationError, World

WARM_UP_S = 10.0
# Invariant 5, step by step: a silent leader is noticed after 2 s (detection), a dial into the void ends after 6 s (first answer),
# the new leader hears members for 2 s, an attempt begun with the dead peer ends within 4 s (its patience), and a smaller swarm
# needs twice 2 s to draw a batch and to reduce it.
KILL_BOUND_S = 20.0
# After the last fault, and the 8.5 s that it may last: a donor that died silently costs a catch-up 10 s, and the pause after it
# up to 8 s; a leader that is gone costs a follower 6 s (first answer), and the new leader hears members for 2 s; two leaders find
# each other by a look at a random neighbour every 5 s, mostly within three looks; a smaller swarm draws two batches in 4 s each,
# and one attempt may stall for 4 s. That is 53 s.
#
# A leader on a slow line takes longer if most others are stragglers and nobody else can bring them its commits: they come level
# one after another. docs/PROTOCOL.md ("Stragglers") promises nothing where that takes longer than an epoch. Hence the double.
LIVENESS_S = 120.0
SETTLED_COMMITS = 2
# Among liars, docs/SECURITY.md: after the last fault the honest peers come to one lineage and two commits within the first time,
# and from then on no epoch of theirs takes longer than the second.
LIVENESS_AMONG_LIARS_S = 240.0
EPOCH_AMONG_LIARS_S = 120.0
LIES_ALONE_S = 120.0  # so long nothing goes wrong but lies
# One run in eight ends after so many epochs.
MAX_EPOCHS = 12


@dataclass(kw_only=True)
class Counts:
    """What adds up over seeds."""

    commits: int = 0
    retries: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    faults_at: Counter[str] = field(default_factory=Counter)
    lies: Counter[str] = field(default_factory=Counter)  # peers that told this one
    codecs: Counter[str] = field(default_factory=Counter)  # of the commits announced
    codec_changes: int = 0  # commits that name another for the next
    overtaken: int = 0
    forks_lost: int = 0  # by a peer that said so
    donors_failed: int = 0  # as a peer that catches up finds
    starved: int = 0  # 1 if, to the end, only slow lines could bring the commits to those who were behind
    virtual_s: float = 0.0


@dataclass
class SeedResult(Counts):
    """What came of one seed. `violated` names the invariant, '' if none was violated."""

    seed: int
    recovery_s: float = 0.0
    kill_to_commit_s: float | None = None
    epoch_among_liars_s: float = 0.0  # the longest between two commits while nothing went wrong but lies
    trace_digest: str = ""
    violated: str = ""
    what: str = ""
    trace: list[str] = field(default_factory=list)
    schedule: Schedule = ()
    liars: Mapping[str, str] = field(default_factory=dict)  # peer -> its lie


def simulate(
    seed: int,
    peers: int = 8,
    *,
    faults: bool = True,
    schedule: Schedule | None = None,
    hostile: float = 0.0,
    lies: Iterable[str] = LIES,
) -> SeedResult:
    """`schedule`: the faults, instead of those drawn from the seed. The runs of odd seeds overlap; every second one of the others
    takes local steps.

    `hostile`: the share of the peers that lie from the beginning to the end, each with one of `lies`. Among them no other peer
    drifts or gives damaged state: docs/SECURITY.md promises nothing where honest states are damaged, too.
    """
    world = World(seed)
    liars = draw_liars(seed, [f"p{index}" for index in range(peers)], hostile, lies)
    max_epochs = MAX_EPOCHS if seed % 8 == 6 else None
    problem = LOCAL_REGRESSION if seed % 4 == 2 else REGRESSION
    swarm = Swarm(world, peers, problem=problem, overlap=bool(seed % 2), max_epochs=max_epochs, liars=liars)
    if schedule is None:
        schedule = draw(seed, swarm.names) if faults else ()
    if liars:
        schedule = tuple(fault for fault in schedule if fault.kind not in ("drift", "lying donor"))
    seed_result = SeedResult(seed, schedule=schedule, liars=liars, lies=Counter(liars.values()))
    try:
        with _quick_and_quiet(), swarm:  # quiet to the end: what is disposed of complains
            _play(world, swarm, seed_result, faults)
    except ViolationError as violation:
        seed_result.violated, seed_result.what = violation.invariant, violation.what
        seed_result.trace = list(world.notable)
    seed_result.commits, seed_result.retries = len(swarm.observer.lineages.times), swarm.observer.retries
    seed_result.faults, seed_result.faults_at = swarm.injector.by_kind, swarm.injector.by_phase
    commits = swarm.observer.commits.values()
    seed_result.codecs = Counter(commit.codec for commit in commits)
    seed_result.codec_changes = sum(commit.codec != commit.next_codec for commit in commits)
    seed_result.overtaken = swarm.network.overtaken
    seed_result.forks_lost, seed_result.donors_failed = swarm.observer.forks_told, swarm.observer.donors_failed
    seed_result.virtual_s, seed_result.trace_digest = world.now, world.trace_digest
    return seed_result


@contextmanager
def _quick_and_quiet() -> Iterator[None]:
    """One thread: for vectors as short as these, torch's threads cost far more than they save.

    No log lines: the peers' are about faults that were meant; the trace has what matters.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        logging.disable(logging.NOTSET)


def _play(world: World, swarm: Swarm, seed_result: SeedResult, faults: bool) -> None:
    random, observer = world.random, swarm.observer
    swarm.start(swarm.names[0])
    for name in swarm.names[1:]:
        world.at(random.uniform(0.1, 2), None, lambda name=name: swarm.start(name))  # type: ignore[misc]
    world.run_until(WARM_UP_S)
    swarm.ban_a_stranger()
    if not faults:
        world.run_until(WARM_UP_S + FAULTS_S)
        _settle(world, swarm, seed_result)
        _outlast(world, swarm, seed_result)
        return
    for fault in seed_result.schedule:
        if fault.alone and not swarm.liars and observer.lineages.times:
            _kill_one(world, swarm, seed_result, fault)
    swarm.injector.begin(tuple(fault for fault in seed_result.schedule if swarm.liars or not fault.alone))
    world.run_until(world.now + FAULTS_S)
    swarm.injector.disarm()
    swarm.restarts = False
    world.run_until(world.now + LONGEST_S)
    for name in swarm.names:
        if name == swarm.names[0] or swarm.liars or random.random() < 0.7:
            swarm.start(name)
    world.trace("no more faults", notable=True)
    _settle(world, swarm, seed_result)
    _outlast(world, swarm, seed_result)
    assert observer.lineages.times


def _kill_one(world: World, swarm: Swarm, seed_result: SeedResult, fault: Fault) -> None:
    """One kill alone, at a phase that the seed names: survivors commit within the bound of invariant 5."""
    observer, injector = swarm.observer, swarm.injector
    swarm.restarts = False
    injector.arm(fault)
    world.run_until(world.now + PATIENCE_S + 1, lambda: bool(injector.by_kind))
    killed_at = world.now
    if injector.by_kind:
        world.run_until(killed_at + KILL_BOUND_S, lambda: observer.last_commit_at > killed_at)
        if observer.last_commit_at <= killed_at:
            world.violated("5 one kill", f"no commit within {KILL_BOUND_S:.0f} s of a single kill")
        seed_result.kill_to_commit_s = observer.last_commit_at - killed_at
    swarm.restarts = True
    for name in swarm.names:
        swarm.restart(name)


def _settle(world: World, swarm: Swarm, seed_result: SeedResult) -> None:
    """Liveness: all live and honest processes come to one lineage, go on committing there, and hear of a new ban list."""
    began, observer = world.now, swarm.observer
    swarm.ban_a_stranger()

    looked_at, answer = -1, False

    def settled() -> bool:
        nonlocal looked_at, answer
        if looked_at != observer.moves:
            looked_at, answer = observer.moves, look()
        return answer and all(process.engine.bans.newest == swarm.bans for process in swarm.honest)

    def look() -> bool:
        standings = {observer.standing_of(process) for process in swarm.honest}
        if len(standings) > 1 or "" in standings or any(map(observer.is_drifted, swarm.honest)):
            return False
        (standing,) = standings
        known, times = observer.lineages.known, observer.lineages.times
        chain, digest = 0, standing
        while digest in times and times[digest] > began:
            chain, digest = chain + 1, known[digest].parent
        return swarm.settings.max_epochs == known[standing].epoch or chain >= SETTLED_COMMITS

    within_s = LIVENESS_AMONG_LIARS_S if swarm.liars else LIVENESS_S
    world.run_until(began + within_s, settled)
    seed_result.recovery_s = world.now - began
    seed_result.starved = int(not settled() and _is_starved(swarm, began))
    if not settled() and not seed_result.starved:
        standings = sorted({observer.standing_of(process)[:8] or "none" for process in swarm.honest})
        recent = sum(at > began for at in observer.lineages.times.values())
        world.violated("4 liveness", f"{within_s:.0f} s after the last fault: {recent} commits, lineages {', '.join(standings)}")


def _outlast(world: World, swarm: Swarm, seed_result: SeedResult) -> None:
    """Liveness among liars: while nothing goes wrong but lies, the honest peers commit again and again."""
    applied, end = swarm.observer.honestly_reached, world.now + LIES_ALONE_S
    last_epoch = swarm.settings.max_epochs

    def is_over() -> bool:
        return any(process.replica.tip is not None and process.replica.tip.epoch == last_epoch for process in swarm.honest)

    while swarm.liars and world.now < end and not is_over():
        began, commits = world.now, len(applied)
        world.run_until(began + EPOCH_AMONG_LIARS_S, lambda commits=commits: len(applied) > commits)  # type: ignore[misc]
        if len(applied) == commits:
            what = f"{len(swarm.honest)} honest peers beside {len(swarm.alive) - len(swarm.honest)} liars commit nothing for"
            world.violated("4 lies", f"{what} {EPOCH_AMONG_LIARS_S:.0f} s")
        seed_result.epoch_among_liars_s = max(seed_result.epoch_among_liars_s, world.now - began)


def _is_starved(swarm: Swarm, began: float) -> bool:
    """The case for which docs/PROTOCOL.md ("Stragglers") promises nothing: the swarm commits, and only slow lines can bring the
    commits to those who are behind."""
    observer, lineages = swarm.observer, swarm.observer.lineages
    if not lineages.times:
        return False
    newest = max(lineages.times, key=lineages.times.__getitem__)
    if lineages.times[newest] <= began:
        return False
    level = {newest, lineages.known[newest].parent}
    donors = [process for process in swarm.honest if process.machine.reachable and observer.standing_of(process) in level]
    behind = {observer.standing_of(process) for process in swarm.honest} - {""}
    on_the_way = all(lineages.is_ancestor(standing, newest) for standing in behind)
    return on_the_way and all(process.machine.up_bytes_s < SLOW_BYTES_S for process in donors)


ALL_KINDS = (*KINDS, "restart with memory", "restart without memory")
