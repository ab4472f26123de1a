"""What goes wrong, and when: faults drawn from the seed, each armed for a process and set off as a named phase begins."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from protocols.simulation.world import World

if TYPE_CHECKING:
    from protocols.simulation.process import SimulatedPeer
    from protocols.simulation.swarm import Swarm

# A process dies (its machine tells the others); its machine loses power (nobody is told); SIGSTOP; a disk or device that is slow;
# a step that fails midway; a volunteer who leaves; links of one machine that break; a split of the swarm; a line that carries one
# way only.
KINDS = (
    "crash",
    "power cut",
    "freeze",
    "slow disk",
    "device error",
    "leave",
    "connection loss",
    "partition",
    "one-way partition",
)
# Phases that few processes come to: whoever does is the target.
SELDOM = ("catching up", "planning", "announcing")
PHASES = ("training", "frozen", "reducing", "ready", "applying", *SELDOM)
# A fault whose phase does not come is set off after this long, wherever its process stands.
PATIENCE_S = 9.0
# It strikes within this time of the phase's beginning: before the first message of the phase, or between two.
SPREAD_S = 0.06


@dataclass
class Fault:
    kind: str
    phase: str
    target: str  # '' for whoever comes to this phase first

    def fits(self, process: SimulatedPeer, phase: str) -> bool:
        return phase == self.phase and self.target in ("", process.name)


class Injector:
    def __init__(self, world: World, swarm: Swarm) -> None:
        self._world, self._swarm = world, swarm
        self._armed: list[Fault] = []
        self.by_kind: Counter[str] = Counter()
        self.by_phase: Counter[str] = Counter()

    def arm(self, kinds: tuple[str, ...] = KINDS) -> None:
        random = self._world.random
        kind, phase = random.choice(kinds), random.choice(PHASES)
        anybody = phase in SELDOM or random.random() < 0.5
        target = "" if anybody else random.choice(self._swarm.names)
        fault = Fault(kind, phase, target)
        self._armed.append(fault)
        self._world.at(PATIENCE_S, None, lambda: self._expire(fault))

    def disarm(self) -> None:
        self._armed.clear()

    def entered(self, process: SimulatedPeer, phase: str) -> None:
        """`process` came to `phase` just now."""
        fault = next((armed for armed in self._armed if armed.fits(process, phase)), None)
        if fault is not None:
            self._armed.remove(fault)
            self._world.at(self._world.random.random() * SPREAD_S, None, partial(self._strike, fault, process, phase))

    def count(self, kind: str) -> None:
        """Of a fault that is a consequence of another: a restart."""
        self.by_kind[kind] += 1

    def _expire(self, fault: Fault) -> None:
        alive = [process for process in self._swarm.alive if fault.target in ("", process.name)]
        if fault in self._armed:
            self._armed.remove(fault)
            if alive:
                process = self._world.random.choice(alive)
                self._strike(fault, process, process.member.phase.value)

    def _strike(self, fault: Fault, process: SimulatedPeer, phase: str) -> None:
        if not process.alive:
            return
        self._world.trace(f"FAULT {fault.kind} of {process.name} at {phase}", notable=True)
        self.by_kind[fault.kind] += 1
        self.by_phase[f"{fault.kind} @ {phase}"] += 1
        swarm, random = self._swarm, self._world.random
        match fault.kind:
            case "crash":
                swarm.kill(process, tell=True)
            case "power cut":
                swarm.kill(process, tell=False)
            case "freeze":
                process.stopped_until = self._world.now + random.choice((0.5, 1.5, 3.0, 6.0)) * random.uniform(0.8, 1.2)
            case "slow disk":
                process.trainer.slowness = 60.0
                self._world.at(random.uniform(2, 6), process, lambda: setattr(process.trainer, "slowness", 1.0))
            case "device error":
                process.replica.fails_next_step = True
            case "leave":
                process.link.leave()
                self._world.at(0.1, process, lambda: swarm.kill(process, tell=True))
            case "connection loss":
                for stream in swarm.network.streams_of(process.name):
                    if random.random() < 0.6:
                        stream.break_off()
            case "partition":
                others = [name for name in swarm.names if random.random() < 0.5]
                side = {process.name, *others}
                swarm.block([(a, b) for a in side for b in swarm.names if b not in side], both=True, seconds=random.uniform(1, 8))
            case "one-way partition":
                others = [name for name in swarm.names if name != process.name and random.random() < 0.6]
                swarm.block([(process.name, other) for other in others], both=False, seconds=random.uniform(1, 8))
