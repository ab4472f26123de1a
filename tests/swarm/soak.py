"""Does a peer's memory stay flat? Hundreds of rounds with a fault in every third, in real processes: make soak ROUNDS=500.

One peer and the auxiliary peer are left alone and measured; two others are killed and started again, stopped past detection
and continued, or lose their connections, at every phase of a round in turn. Prints a line every 25 rounds and the verdict;
exit code 1 unless the resident memory of those measured is flat within 5 % after warm-up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from protocols.round.leader import DETECTION_S
from tests.swarm.faults import PHASES, auxiliary_process
from tests.swarm.swarm import Process, Swarm, wait_until

FLAT = 0.05
EVERY = 3
SAY_EVERY = 25
ACTS = ("cut", "stop", "cut", "kill")
FIRED_S = 90.0


class Tail:
    """The events of one log as they come: reading it anew for each round would make the soak measure itself."""

    def __init__(self, path: Path) -> None:
        self._file = path.open()
        self._rest = ""
        self.epoch = 0
        self.failed = 0

    def read(self) -> None:
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        for line in lines:
            record: dict[str, Any] = json.loads(line)
            if record["event"] == "committed":
                self.epoch = max(self.epoch, int(record["epoch"]))
            self.failed += record["event"] in ("attempt_failed", "leader_lost")


class Victim:
    """A peer that is hurt again and again."""

    def __init__(self, swarm: Swarm, name: str) -> None:
        self._swarm = swarm
        self._name = name
        self._continue_at = 0.0
        self._back_from = 0  # commits in its log when it was hurt
        self.process = swarm.start_peer(name)
        self.armed = False

    @property
    def _fired(self) -> Path:
        return self.process.folder / "fired.json"

    def commits(self) -> int:
        path = self.process.folder / "events.jsonl"
        return path.read_bytes().count(b'"event": "committed"') if path.exists() else 0

    def arm(self, phase: str, act: str) -> None:
        self._fired.unlink(missing_ok=True)
        aside = self.process.folder / "fault.tmp"
        aside.write_text(json.dumps({"phase": phase, "act": act, "target": "self"}))
        aside.rename(self.process.folder / "fault.json")
        self.armed = True

    def tend(self) -> str:
        """What was done just now to bring it back, or has happened to it: 'kill', 'stop', 'cut', or ''."""
        if self._continue_at and time.monotonic() > self._continue_at:
            self._continue_at = 0.0
            self.process.send(signal.SIGCONT)
        if not self.armed or not self._fired.exists():
            return ""
        self.armed = False
        self._back_from = self.commits()
        act = str(json.loads(self._fired.read_text())["act"])
        if act == "kill":
            self.process.wait(30)
            self.process = self._swarm.start_peer(self._name)
        elif act == "stop":
            self._continue_at = time.monotonic() + 1.25 * DETECTION_S
        return act

    @property
    def available(self) -> bool:
        return not self.armed and not self._continue_at and self.commits() > self._back_from


def soak(rounds: int, folder: Path) -> bool:
    """Whether memory stayed flat."""
    with Swarm(folder, seed=51, batch=384, faults=True) as swarm:
        watched = swarm.start_peer("watched")
        victims = [Victim(swarm, "first"), Victim(swarm, "second")]
        for process in (watched, *(victim.process for victim in victims)):
            swarm.contributes(process)
        measured = {"watched peer": psutil.Process(watched.pid), "auxiliary peer": auxiliary_process(swarm)}
        try:
            samples = _rounds(rounds, swarm, watched, victims, measured)
        finally:
            for victim in victims:
                victim.process.send(signal.SIGCONT)
    verdicts = [_verdict(name, values) for name, values in samples.items()]
    return all(verdicts)


def _rounds(
    rounds: int, swarm: Swarm, watched: Process, victims: list[Victim], measured: dict[str, psutil.Process]
) -> dict[str, list[int]]:
    log = Tail(watched.folder / "events.jsonl")
    log.read()
    first, began = log.epoch, time.monotonic()
    schedule = zip(itertools.cycle(ACTS), itertools.cycle(PHASES[1:] + PHASES[:1] * 2), strict=False)
    samples: dict[str, list[int]] = {name: [] for name in measured}
    happened: dict[str, int] = dict.fromkeys(ACTS, 0)
    for number in range(1, rounds + 1):

        def over(epoch: int = first + number) -> bool:
            assert watched.running, watched.tail()
            log.read()
            for victim in victims:
                act = victim.tend()
                if act:
                    happened[act] += 1
            return log.epoch >= epoch

        wait_until(over, f"round {number}", FIRED_S)
        if number % EVERY == 0:
            wait_until(lambda: over() and any(victim.available for victim in victims), "a peer to hurt", FIRED_S)
            act, phase = next(schedule)
            min((victim for victim in victims if victim.available), key=lambda victim: victim.commits()).arm(phase, act)
        for name, process in measured.items():
            samples[name].append(process.memory_info().rss)
        if number % SAY_EVERY == 0:
            memory = ", ".join(f"{name} {values[-1] / 2**20:.1f} MiB" for name, values in samples.items())
            faults = ", ".join(f"{count} {act}" for act, count in happened.items())
            print(f"round {number} (epoch {log.epoch}, {time.monotonic() - began:.0f} s): {memory}; {faults}", flush=True)
    return samples


def _verdict(name: str, values: list[int]) -> bool:
    """The medians of the second and of the last fifth of the rounds."""
    fifth = max(1, len(values) // 5)
    early, late = statistics.median(values[fifth : 2 * fifth]), statistics.median(values[-fifth:])
    change = late / early - 1
    flat = abs(change) <= FLAT
    spans = f"rounds {fifth + 1}-{2 * fifth} and {len(values) - fifth + 1}-{len(values)}"
    medians = f"{early / 2**20:.1f} MiB, then {late / 2**20:.1f} MiB ({change:+.2%}; medians of {spans})"
    print(f"{name}: {medians}: {'flat' if flat else 'NOT FLAT'}")
    return flat


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=500)
    with tempfile.TemporaryDirectory(prefix="dugnad-soak-") as folder:
        return 0 if soak(parser.parse_args().rounds, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
