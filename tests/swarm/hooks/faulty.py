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

import datetime
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

PACE_S = float(os.environ.get("DUGNAD_TEST_PACE_S", "0"))  # that each micro-batch takes longer
FRESH_S = float(os.environ.get("DUGNAD_TEST_FRESH_S", "0"))  # instead of a week, for certificates
MID_SHARD_CHUNKS = 3  # of fp32; the tests' shards are of more


def install(arguments: Sequence[str]) -> None:
    """Called before the program starts; `arguments` are the whole command line."""
    role = next((a for a in arguments if a in ("peer", "coordinator")), "")
    if not role:
        return  # hivemind's child, or some other helper
    signal.signal(signal.SIGUSR1, lambda number, frame: cut_connections())
    if FRESH_S:
        sys.meta_path.insert(0, AfterImport({"protocols.identity": fresh_for_less}))
    if role == "peer":
        folder = Path(arguments[arguments.index("--home") + 1])
        hooks = Hooks(folder)
        sys.meta_path.insert(
            0,
            AfterImport(
                {
                    "peer.training.replica": hooks.replica,
                    "peer.training.trainer": hooks.trainer,
                    "peer.epoch.engine": hooks.engine,
                }
            ),
        )


def fresh_for_less(module: ModuleType) -> None:
    assert module.FRESH.days == 7
    module.FRESH = datetime.timedelta(seconds=FRESH_S)  # type: ignore[attr-defined]


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
        if PACE_S:
            from peer.training.strategies.base import Strategy

            after_backward = Strategy.after_backward

            def paced(strategy: Any, samples: int, loss_sum: float) -> None:
                time.sleep(PACE_S)  # where the trainer measures its speed
                after_backward(strategy, samples, loss_sum)

            Strategy.after_backward = paced  # type: ignore[method-assign]

    def engine(self, module: ModuleType) -> None:
        from peer.epoch.round_traffic import RoundTraffic
        from protocols.gradients.shard_average import MIN_CHUNK_ELEMENTS
        from protocols.round.leader_actions import Announce
        from protocols.round.member import Ready
        from protocols.round.records import Hello
        from protocols.transport.bandwidth import Direction
        from protocols.transport.grpc_streams import GrpcStream
        from protocols.wire.calls import CALL_OF

        run, act, apply, begin = RoundTraffic.run, module.Engine._act, module.Engine._apply, GrpcStream.__init__
        mid_shard_bytes, to_leader = MID_SHARD_CHUNKS * MIN_CHUNK_ELEMENTS * 4, CALL_OF[Hello].up
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
            def moving(direction: Any, size: int) -> None:
                move(direction, size)
                before, self._moved_bytes = self._moved_bytes, self._moved_bytes + size
                if before < mid_shard_bytes <= self._moved_bytes:
                    self.enter("mid-shard")

            return moving

        def beginning(stream: Any, peer: str, read: Any, write: Any, *, outgoing: Any, **others: Any) -> None:
            async def writing(message: bytes) -> None:
                await write(message)
                if outgoing is to_leader and isinstance(outgoing.from_bytes(message), Ready):
                    self.enter("ready-before-commit")

            begin(stream, peer, read, writing, outgoing=outgoing, **others)

        def acting(engine: Any, action: Any) -> None:
            if isinstance(action, Announce):
                self.enter("ready-before-commit")
            act(engine, action)

        async def applying(engine: Any, *arguments: Any) -> None:
            self.enter("after-commit-before-apply")
            await apply(engine, *arguments)

        RoundTraffic.run = running  # type: ignore[method-assign,assignment]
        Direction.moved = counting(Direction.moved)  # type: ignore[method-assign]
        GrpcStream.__init__ = beginning  # type: ignore[method-assign,assignment]
        module.Engine._act, module.Engine._apply = acting, applying

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
