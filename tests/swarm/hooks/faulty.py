"""Faults at a named phase of a round, in a real process: wraps the production methods at which the phases begin.

Production code knows nothing of this. A fault is armed while the process runs, by a file `fault.json` in its folder:
`{"phase": ..., "act": ..., "target": ...}`. When the phase is entered, the file goes, `fired.json` says when and in which epoch
it happened, and the act is done:

    phase                      begins
    before-sending             as the exchange of a plan begins; no byte of the contribution has left
    mid-shard                  after three chunks' bytes of an exchange have moved
    ready-before-commit        after Ready was written to the leader; at the leader itself: a majority is ready, nothing is signed
    after-commit-before-apply  the commit is here, and the state is not touched yet

    act    kill: SIGKILL    stop: SIGSTOP    cut: every open TCP connection is shut down, and the process goes on
    target self, or parent: the coordinator, whose auxiliary peer sees the phases for it

Every state that a replica takes is written to `states.jsonl`, as lineage and digest, so that a test can compare replicas at every
epoch; and to `exchanges.jsonl`, for every exchange, how many micro-batches were drawn while it ran, and whether it was given to.

A name that is gone from production raises AttributeError when the process starts: a hook that hooks nothing would test nothing.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

CHUNK_BLOCKS = 4  # grid blocks in a chunk: the tests' small shards have several chunks, so that "mid-shard" exists
MID_SHARD_BYTES = 3 * CHUNK_BLOCKS * 1024 * 4  # three of fp32


def install(arguments: Sequence[str]) -> None:
    """Called before the program starts; `arguments` are the whole command line."""
    role = next((a for a in arguments if a in ("peer", "coordinator")), "")
    if not role:
        return  # hivemind's child, or some other helper
    signal.signal(signal.SIGUSR1, lambda number, frame: cut_connections())
    if role == "peer":
        folder = Path(arguments[arguments.index("--home") + 1])
        hooks = Hooks(folder)
        sys.meta_path.insert(
            0,
            AfterImport(
                {
                    "protocols.gradients.shard_average": small_chunks,
                    "peer.training.replica": hooks.replica,
                    "peer.training.trainer": hooks.trainer,
                    "peer.epoch.engine": hooks.averaging,
                }
            ),
        )


class AfterImport(importlib.abc.MetaPathFinder):
    """Lets some modules be changed just after they were imported."""

    def __init__(self, changes: dict[str, Callable[[ModuleType], None]]) -> None:
        self._changes = changes

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        change = self._changes.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        run = spec.loader.exec_module

        def execute(module: ModuleType) -> None:
            run(module)
            change(module)

        spec.loader.exec_module = execute  # type: ignore[method-assign]
        return spec


def small_chunks(reduction: ModuleType) -> None:
    reduction.CHUNK_ELEMENTS = CHUNK_BLOCKS * reduction.GRID  # type: ignore[attr-defined]


class Hooks:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._armed = folder / "fault.json"
        self._moved_bytes = self._drawn = 0
        self._at = {"epoch": 0, "attempt": 0}

    def replica(self, module: ModuleType) -> None:
        states = (self._folder / "states.jsonl").open("a", buffering=1)
        for name in ("apply", "restore"):
            take = getattr(module.Replica, name)

            def taking(replica: Any, *arguments: Any, take: Callable[..., Any] = take) -> Any:
                tip = take(replica, *arguments)
                digest = hashlib.sha256(replica.capture()[0]).hexdigest()
                states.write(json.dumps({"epoch": tip.epoch, "lineage": tip.lineage, "state": digest}) + "\n")
                return tip

            setattr(module.Replica, name, taking)

    def trainer(self, module: ModuleType) -> None:
        draw = module.Trainer.micro_batch

        def drawing(trainer: Any) -> None:
            draw(trainer)
            self._drawn += 1

        module.Trainer.micro_batch = drawing

    def averaging(self, module: ModuleType) -> None:
        from peer.epoch import leader_link
        from peer.epoch.round_traffic import RoundTraffic
        from protocols.round.leader import Announce
        from protocols.transport.bandwidth import Direction

        run, act, apply = RoundTraffic.run, module.Engine._act, module.Engine._apply
        write_all = leader_link._write_all

        exchanged = (self._folder / "exchanges.jsonl").open("a", buffering=1)

        async def running(round_traffic: Any, plan: Any, contribution: Any, *rest: Any) -> Any:
            before = self._drawn
            self._moved_bytes = 0
            self._at = {"epoch": plan.ballot.epoch, "attempt": plan.ballot.attempt}
            self.enter("before-sending")
            try:
                return await run(round_traffic, plan, contribution, *rest)
            finally:
                line = {**self._at, "gives": contribution is not None, "micro_batches": self._drawn - before}
                exchanged.write(json.dumps(line) + "\n")

        def counting(move: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
            def moving(flow: Any, size: int) -> None:
                move(flow, size)
                before, self._moved_bytes = self._moved_bytes, self._moved_bytes + size
                if before < MID_SHARD_BYTES <= self._moved_bytes:
                    self.enter("mid-shard")

            return moving

        async def writing(call: Any, outbox: Any) -> None:
            await write_all(_Written(call, lambda: self.enter("ready-before-commit")), outbox)

        def acting(averaging: Any, action: Any) -> None:
            if isinstance(action, Announce):
                self.enter("ready-before-commit")
            act(averaging, action)

        async def applying(averaging: Any, *arguments: Any) -> None:
            self.enter("after-commit-before-apply")
            await apply(averaging, *arguments)

        RoundTraffic.run = running  # type: ignore[method-assign,assignment]
        Direction.moved = counting(Direction.moved)  # type: ignore[method-assign]
        module.Engine._act, module.Engine._apply = acting, applying
        leader_link._write_all = writing

    def enter(self, phase: str) -> None:
        try:
            fault = json.loads(self._armed.read_text())
        except FileNotFoundError:
            return
        if fault["phase"] != phase:
            return
        self._armed.unlink()
        aside = self._folder / "fired.tmp"
        aside.write_text(json.dumps({**fault, **self._at, "time": time.time()}))
        aside.rename(self._folder / "fired.json")
        whom = os.getpid() if fault["target"] == "self" else os.getppid()
        if fault["act"] == "cut" and fault["target"] == "self":
            cut_connections()
        else:
            os.kill(whom, {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "cut": signal.SIGUSR1}[fault["act"]])


class _Written:
    """A call that says when Ready was written."""

    def __init__(self, call: Any, ready: Callable[[], None]) -> None:
        self._call = call
        self._ready = ready

    async def write(self, message: Any) -> None:
        await self._call.write(message)
        if message.WhichOneof("kind") == "ready":
            self._ready()


def cut_connections() -> None:
    """As if every cable had been pulled and put back: connections are over, whoever opened them."""
    import socket

    import psutil

    for connection in psutil.Process().net_connections("tcp"):
        if connection.status == psutil.CONN_ESTABLISHED:
            try:
                with socket.socket(fileno=os.dup(connection.fd)) as ours:
                    ours.shutdown(socket.SHUT_RDWR)
            except OSError as error:  # it was over already
                print(f"cut: {error}", file=sys.stderr)
