"""One peer of one engine that averages vectors when it is told to."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.engines.base import Engine, NotAveragedError, PeerSetup
from benchmarks.serving import serve_forever
from benchmarks.vectors import contribution, largest_excess


def engine_of(name: str, setup: PeerSetup) -> Engine:
    # Imported here, since each brings seconds of imports with it that the others can do without.
    if name == "dugnad":
        from benchmarks.engines.dugnad import Dugnad

        return Dugnad(setup)
    if name == "hivemind":
        from benchmarks.engines.hivemind import Hivemind

        return Hivemind(setup)
    from benchmarks.engines.gloo import Gloo

    return Gloo(setup)


class Family:
    """This process and its children: what they use of the machine."""

    def __init__(self) -> None:
        self._processes = [psutil.Process()]
        self._before: dict[int, dict[str, int]] = {}
        self._peak_bytes = 0

    def settle(self) -> None:
        """All children are there now, and what memory they have is where counting starts."""
        self._processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        self._before = {process.pid: _memory(process.pid) for process in self._processes}

    def begin(self) -> None:
        """Peaks are counted from now on."""
        for process in self._processes:
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def end(self) -> None:
        self._peak_bytes = max(self._peak_bytes, sum(self._above(process.pid) for process in self._processes))

    def _above(self, pid: int) -> int:
        # Shared memory is what the engine was given to average: that a child maps it, too, costs nothing.
        before, now = self._before[pid], _memory(pid)
        return max(0, now["VmHWM"] - before["VmRSS"] - max(0, now["RssShmem"] - before["RssShmem"]))

    @property
    def peak_bytes(self) -> int:
        """The largest that each process has been, above where it was when things settled, summed."""
        return self._peak_bytes

    def cpu_s(self) -> float:
        return sum(times.user + times.system for process in self._processes for times in [process.cpu_times()])


def _memory(pid: int) -> dict[str, int]:
    """The figures in bytes of /proc/PID/status."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {fields[0].rstrip(":"): int(fields[1]) * 1024 for fields in lines if fields[-1] == "kB"}


class Worker:
    def __init__(self, engine: str, setup: PeerSetup) -> None:
        self._name = engine
        self._setup = setup
        self._family = Family()
        self._cpu_s = 0.0
        self._engine = engine_of(engine, setup)

    def start(self, first: dict[str, Any] | None) -> dict[str, Any]:
        return self._engine.start(first)

    def connect(self, greetings: list[dict[str, Any]]) -> None:
        self._engine.connect(greetings)

    def settle(self) -> None:
        self._family.settle()

    def prepare(self, turn: int) -> None:
        setup = self._setup
        self._engine.prepare(turn, contribution(setup.noise, setup.params, setup.rank, turn, 0, setup.params))

    def prepared(self) -> bool:
        return self._engine.prepared()

    def run(self) -> dict[str, Any]:
        """When it began and ended, by the machine's monotonic clock, which all processes share."""
        self._family.begin()
        self._cpu_s = self._family.cpu_s()
        problem, began = "", time.monotonic()
        try:
            self._engine.run()
        except NotAveragedError as error:
            problem = str(error) or "not averaged"
        return {"began": began, "ended": time.monotonic(), "problem": problem}

    def check(self, turn: int, codec: str) -> dict[str, Any]:
        """Everybody has ended: what it cost, and whether the averages are right."""
        self._family.end()
        cost = {"cpu_s": self._family.cpu_s() - self._cpu_s, "peak_bytes": self._family.peak_bytes}
        result = self._engine.result()
        setup = self._setup
        if result is None:
            return {**cost, "excess": 0.0}
        added_to = setup.rank if self._name == "hivemind" else None
        excess = largest_excess(result, setup.noise, setup.contributors, turn, codec, added_to=added_to)
        return {**cost, "excess": excess}


def main() -> None:
    serve_forever(lambda: Worker(sys.argv[1], PeerSetup.from_json(sys.argv[2])))


if __name__ == "__main__":
    main()
