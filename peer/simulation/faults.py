"""What goes wrong, and when: a schedule drawn from the seed before the run, each fault set off as a named phase begins.

A fault draws what it needs (whom, how long) from a source of its own, so that leaving another out does not change it: that is
how a violation's schedule is shrunk.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from peer.simulation.world import World
from protocols.messages import Chunk

if TYPE_CHECKING:
    from peer.simulation.process import SimulatedPeer
    from peer.simulation.swarm import Swarm

# A process dies (its machine tells the others); its machine loses power (nobody is told); SIGSTOP; a disk or device that is slow;
# a step that fails midway; a volunteer who leaves; links of one machine that break; a split of the swarm; a line that carries one
# way only; a clock that runs at up to twice or down to half its rate; a state that drifts, here and perhaps where it was
# fetched to; a donor whose snapshots and commits are damaged; a port that takes shards from some or from nobody.
DEATHS = ("crash", "power cut")
KINDS = (
    *DEATHS,
    "freeze",
    "slow disk",
    "device error",
    "leave",
    "connection loss",
    "partition",
    "one-way partition",
    "clock skew",
    "drift",
    "lying donor",
    "shut port",
)
# What a leader does. A chain of faults follows the leader's office: whoever takes over from one that was struck is struck too.
LEADING = ("planning", "majority", "announcing")
# Phases that few processes come to: whoever does is the target.
SELDOM = ("catching up", *LEADING)
PHASES = ("training", "frozen", "reducing", "ready", "applying", *SELDOM)
FAULTS_S = 40.0
MEAN_PAUSE_S = 4.5
CHAINED = 0.3
# A fault whose phase does not come is set off after this long, wherever its process stands.
PATIENCE_S = 9.0
# It strikes within this time of the phase's beginning: before the first message of the phase, or between two.
SPREAD_S = 0.06
LONGEST_S = 8.5  # that a fault lasts
# A state drifts only while so many others have one: two peers cannot tell whose is off.
MIN_OTHERS = 4


@dataclass(frozen=True)
class Fault:
    number: int
    at_s: float  # after faults begin; earlier for none but the one that strikes alone
    kind: str
    phase: str
    target: str  # '' for whoever comes to this phase first
    seed: int  # of its own source of randomness
    alone: bool = False  # before all others, and nothing else until the swarm has committed or the bound of invariant 5 is over
    after: int | None = None  # armed when that fault has struck, if it is in the schedule

    def fits(self, process: SimulatedPeer, phase: str) -> bool:
        return phase == self.phase and self.target in ("", process.name)

    def __str__(self) -> str:
        when = "alone" if self.alone else f"{self.at_s:.1f} s" if self.after is None else f"after {self.after}"
        return f"{self.number}: {self.kind} of {self.target or 'whoever comes'} at {self.phase} ({when})"


Schedule = tuple[Fault, ...]


def draw(seed: int, names: Sequence[str]) -> Schedule:
    random = Random(f"faults of seed {seed}")
    faults: list[Fault] = []

    def add(at_s: float, kinds: Sequence[str], phases: Sequence[str], *, alone: bool = False, chained: bool = False) -> None:
        kind, phase = random.choice(kinds), random.choice(phases)
        anybody = phase in SELDOM or random.random() < 0.5
        target = "" if anybody else random.choice(names)
        after = faults[-1].number if chained else None
        faults.append(Fault(len(faults), at_s, kind, phase, target, random.getrandbits(32), alone, after))

    if random.random() < 0.5:
        add(0.0, DEATHS, PHASES, alone=True)
    at_s = 0.0
    while (at_s := at_s + random.expovariate(1 / MEAN_PAUSE_S)) < FAULTS_S:
        add(at_s, KINDS, PHASES)
        while random.random() < CHAINED:
            add(at_s, KINDS, LEADING, chained=True)
    return tuple(faults)


class Injector:
    def __init__(self, world: World, swarm: Swarm) -> None:
        self._world, self._swarm = world, swarm
        self._armed: list[Fault] = []
        self._chained: dict[int, list[Fault]] = {}
        self._over = False
        self.by_kind: Counter[str] = Counter()
        self.by_phase: Counter[str] = Counter()

    def begin(self, schedule: Schedule) -> None:
        """Arm each at its time; those of a chain when the one before them has struck."""
        numbers = {fault.number for fault in schedule}
        for fault in schedule:
            if fault.after in numbers:
                self._chained.setdefault(fault.after, []).append(fault)
            else:
                self._world.at(fault.at_s, None, partial(self.arm, fault))

    def arm(self, fault: Fault) -> None:
        if not self._over:
            self._armed.append(fault)
            self._world.at(PATIENCE_S, None, lambda: self._expire(fault))

    def disarm(self) -> None:
        self._armed.clear()
        self._over = True

    def entered(self, process: SimulatedPeer, phase: str) -> None:
        """`process` came to `phase` just now."""
        fault = next((armed for armed in self._armed if armed.fits(process, phase)), None)
        if fault is not None:
            self._armed.remove(fault)
            random = Random(fault.seed)
            self._world.at(random.random() * SPREAD_S, None, partial(self._strike, fault, process, phase, random))

    def _expire(self, fault: Fault) -> None:
        if fault not in self._armed:
            return
        self._armed.remove(fault)
        random = Random(fault.seed)
        alive = [process for process in self._swarm.alive if fault.target in ("", process.name)]
        if alive:
            process = random.choice(alive)
            self._strike(fault, process, process.engine.member.phase.value, random)

    def _strike(self, fault: Fault, process: SimulatedPeer, phase: str, random: Random) -> None:
        for following in self._chained.pop(fault.number, []):
            self.arm(following)
        if not process.alive:
            return
        self._world.trace(f"FAULT {fault.kind} of {process.name} at {phase}", notable=True)
        self.by_kind[fault.kind] += 1
        self.by_phase[f"{fault.kind} @ {phase}"] += 1
        swarm = self._swarm
        match fault.kind:
            case "crash":
                swarm.kill(process, tell=True)
            case "power cut":
                swarm.kill(process, tell=False)
            case "freeze":
                process.stopped_until = self._world.now + random.choice((0.5, 1.5, 3.0, 6.0, 7.0)) * random.uniform(0.8, 1.2)
            case "slow disk":
                process.thread.slowness = 60.0
                self._world.at(random.uniform(2, 6), process, lambda: setattr(process.thread, "slowness", 1.0))
            case "device error":
                process.device.fails_next_step = True
            case "leave":
                self._world.at(0.0, process, lambda: process.leave(lambda: swarm.kill(process, tell=True)))
            case "connection loss":
                for stream in swarm.network.streams_of(process.name):
                    if random.random() < 0.6:
                        stream.break_off()
            case "partition":
                others = [name for name in swarm.names if random.random() < 0.5]
                side = {process.name, *others}
                ways = [(a, b) for a in side for b in swarm.names if b not in side]
                swarm.block(ways, both=True, seconds=random.uniform(1, LONGEST_S))
            case "one-way partition":
                others = [name for name in swarm.names if name != process.name and random.random() < 0.6]
                ways = [(process.name, other) for other in others]
                swarm.block(ways, both=False, seconds=random.uniform(1, LONGEST_S))
            case "drift":
                sound = [other for other in swarm.alive if other.replica.tip is not None and other is not process]
                tip, last = process.replica.tip, swarm.settings.max_epochs
                goes_on = tip is not None and tip.epoch != last  # without another round nobody would notice
                if goes_on and len(sound) >= MIN_OTHERS:
                    by = random.uniform(1e-3, 1e-1)
                    alike = [other for other in sound if other.machine.reachable and other.replica.tip == tip]
                    random.shuffle(alike)
                    spread = random.choice((0, (len(sound) - 2) // 2))  # most states stay sound
                    for drifting in (process, *alike[:spread]):
                        with drifting.replica.strategy.at_tip():
                            drifting.device.drift(by)
                        swarm.observer.drifted(drifting)
            case "lying donor":
                transport, before = process.transport, process.transport.tamper
                transport.tamper = damaged
                self._world.at(random.uniform(2, LONGEST_S), process, lambda: setattr(transport, "tamper", before))
            case "shut port":
                machine, callers = process.machine, [name for name in swarm.names if random.random() < 0.7]
                machine.refuses = random.random() < 0.5
                machine.shut_to.update(callers)
                self._world.at(random.uniform(2, LONGEST_S), None, lambda: machine.shut_to.subtract(callers))
            case "clock skew":
                process.machine.clock.run_at(math.exp2(random.uniform(-1, 1)))
                self._world.at(random.uniform(2, LONGEST_S), None, lambda: process.machine.clock.run_at(1.0))


def damaged(record: Any) -> Any:
    """The record, with a byte of its data changed if it has data."""
    if not isinstance(record, Chunk):
        return record
    at = len(record.data) // 2
    return Chunk(record.offset, record.data[:at] + bytes([record.data[at] ^ 1]) + record.data[at + 1 :])
