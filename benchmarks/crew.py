"""The processes of a benchmark, one a peer, and what they are told."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.engines.base import PeerSetup

LOG_LINES = 12


class CrewError(Exception):
    """A process of an engine failed, or did not answer in time."""


class Hand:
    """One process."""

    def __init__(self, name: str, module: str, arguments: Sequence[str], log: Path, under: Sequence[str] = ()) -> None:
        """`under` comes before the command: what runs it in its namespace."""
        self.name = name
        self._log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # so that it and all that it starts end together, and Ctrl-C reaches only us
                env={**os.environ, "OMP_NUM_THREADS": "1", "HIVEMIND_COLORS": "0", "GRPC_VERBOSITY": "NONE"},
            )
        self._buffer = b""

    def tell(self, command: str, *arguments: Any) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([command, arguments]).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self.failed("it has ended") from error

    def answer(self, deadline: float) -> Any:
        """Raises CrewError at `deadline` (monotonic), or with what the process says went wrong."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self.failed("it does not answer")
                data = os.read(self.process.stdout.fileno(), 1 << 16)
                if not data:
                    raise self.failed("it has ended")
                self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        said = json.loads(line)
        if "error" in said:
            raise self.failed(said["error"])
        return said["answer"]

    def failed(self, problem: str) -> CrewError:
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return CrewError("\n".join([f"{self.name}: {problem}", *(f"    {line}" for line in lines)]))

    def complaint(self) -> str:
        """The last line that it wrote on standard error."""
        lines = self._log.read_text(errors="replace").splitlines()
        return lines[-1].strip() if lines else ""

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its own session: it leads its group
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                assert pipe is not None
                pipe.close()


class Crew:
    """All processes of one engine, by rank. Leaving the block ends them and their children."""

    def __init__(
        self,
        engine: str,
        setups: Sequence[PeerSetup],
        under: Sequence[Sequence[str]],
        *,
        module: str = "benchmarks.worker",
        more: Sequence[str] = (),
    ) -> None:
        """`more`: further arguments, the same for everybody."""
        self.engine = engine
        self.setups = setups
        self._under = under
        self._module = module
        self._more = more
        self.hands: list[Hand] = []

    def __enter__(self) -> Crew:
        try:
            for setup, under in zip(self.setups, self._under, strict=True):
                log = setup.folder / f"{self.engine}-{setup.rank}.log"
                arguments = [self.engine, setup.to_json(), *self._more]
                self.hands.append(Hand(f"{self.engine}, peer {setup.rank}", self._module, arguments, log, under))
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        for hand in self.hands:
            hand.end()

    @property
    def complaint(self) -> str:
        """What one of them said last, if any said anything."""
        return next((f" ({complaint})" for hand in self.hands if (complaint := hand.complaint())), "")

    def all(self, command: str, *arguments: Any, limit_s: float = 120.0) -> list[Any]:
        """Everybody at once; the answers by rank. Raises CrewError."""
        return self._some(self.hands, command, *arguments, limit_s=limit_s)

    def _some(self, hands: Sequence[Hand], command: str, *arguments: Any, limit_s: float) -> list[Any]:
        deadline = time.monotonic() + limit_s
        for hand in hands:
            hand.tell(command, *arguments)
        return [hand.answer(deadline) for hand in hands]

    def meet(self, limit_s: float = 300.0) -> None:
        """Start, the first one first, and make everybody known to everybody."""
        first = self._some(self.hands[:1], "start", None, limit_s=limit_s)
        greetings = first + self._some(self.hands[1:], "start", first[0], limit_s=limit_s)
        self.all("connect", greetings, limit_s=limit_s)
