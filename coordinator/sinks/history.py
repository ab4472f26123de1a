"""A run's history: one JSON line per event in `events.jsonl`, and scalars for TensorBoard beside it.

Every line is `{"time": <unix seconds>, "event": <name>, ...}` with the fields below. A value that is not finite is written as
null. A contributor is `{peer, incarnation, first, end, loss}`: it drew the samples first <= counter < end. `members` is the whole
plan; `absent` says of everybody else who was there, and of members that gave nothing, why (null when the leader was not heard).
`committed.loss` is the training loss averaged over the samples, `evaluated.loss` the held-out one, both in nats per token.

| event | fields |
|---|---|
| run_started | run, run_digest |
| run_resumed | run, run_digest, epoch, lineage |
| peer_joined | peer, name, role, reachable |
| peer_left | peer, name, reason |
| committed | epoch, lineage, parent, lead, samples, contributors, members, absent, loss, lr, grad_norm, seconds, attempts |
| attempt_failed | epoch, attempt, reason, peer |
| evaluated | epoch, loss |
| checkpoint_written | epoch, path, bytes, seconds |
| checkpoint_failed | epoch, reason |
| auxiliary_restarted | reason |
| run_finished | epoch, lineage, samples |

Scalars: train/loss, train/lr, train/grad_norm, swarm/peers, swarm/samples_per_second, eval/loss.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from protocols.errors import DiskError
from protocols.host.event_log import EventLog

Curve = tuple[tuple[int, float], ...]


class History:
    """The run's event log and scalars in `directory`, from any thread."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self._events = EventLog(directory / "events.jsonl", clock=clock)
        self.path = self._events.path
        self._lock = threading.Lock()
        self._scalars: Any = None

    def record(self, event: str, /, **fields: Any) -> dict[str, Any]:
        """Append one event and return it as written. Raises DiskError if it was not written whole; the next call recovers."""
        return self._events.record(event, **fields)

    def scalar(self, tag: str, value: float, step: int) -> None:
        try:
            with self._lock:
                if self._scalars is None:
                    # Here and not above: the import takes a second, and a process that only reads never needs it.
                    from torch.utils.tensorboard import SummaryWriter

                    self._scalars = SummaryWriter(str(self.directory / "tensorboard"), flush_secs=10)
                self._scalars.add_scalar(tag, value, step)
        except OSError as error:
            raise DiskError(
                f"the scalars in {self.directory / 'tensorboard'} cannot be written: {error.strerror or error}",
                remedy="Free some space on that disk.",
            ) from error

    def close(self) -> None:
        with self._lock:
            if self._scalars is not None:
                self._scalars.close()
                self._scalars = None
        self._events.close()

    def __enter__(self) -> History:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class Mark:
    """Somebody came or went when `epoch` was the last one committed (-1: before the first)."""

    epoch: int
    kind: Literal["joined", "left"]
    peer: str
    name: str
    reason: str


@dataclass(frozen=True)
class Summary:
    """A run in numbers. Only the surviving lineage counts: commits of a lineage that was given up are left out.

    `peers_joined` counts contributors, each once however often it came back. `rounds_retried` counts failed attempts.
    `loss_first` and `loss_last` are held-out losses in nats per token.
    """

    epochs: int
    peers_joined: int
    samples_committed: int
    rounds_committed: int
    rounds_retried: int
    loss_first: float | None
    loss_last: float | None
    train_curve: Curve
    eval_curve: Curve
    marks: tuple[Mark, ...]
    duration_s: float


def summarise(events: Iterable[dict[str, Any]]) -> Summary:
    commits: dict[int, dict[str, Any]] = {}
    evaluations: dict[int, float] = {}
    joined: dict[str, None] = {}
    names: dict[str, str] = {}
    marks: list[Mark] = []
    retried = 0
    duration = 0.0
    before: float | None = None
    for record in events:
        event, at = record["event"], float(record["time"])
        # Time in which no coordinator ran is not the run's; a clock set back counts as nothing.
        if before is not None and event not in ("run_started", "run_resumed"):
            duration += max(0.0, at - before)
        before = at
        if event == "committed":
            epoch = int(record["epoch"])
            known = commits.get(epoch)
            if known is not None and known.get("lineage") != record.get("lineage"):
                # A resumed or healed run took another way from here: what was recorded beyond belongs to the old one.
                commits = {e: commit for e, commit in commits.items() if e < epoch}
                evaluations = {e: loss for e, loss in evaluations.items() if e <= epoch}
            commits[epoch] = record
        elif event == "attempt_failed":
            retried += 1
        elif event == "evaluated" and record.get("loss") is not None:
            evaluations[int(record["epoch"])] = float(record["loss"])
        elif event in ("peer_joined", "peer_left"):
            peer = str(record.get("peer", ""))
            names[peer] = str(record.get("name") or names.get(peer, ""))
            if event == "peer_joined" and record.get("role") != "auxiliary":
                joined[peer] = None
            kind: Literal["joined", "left"] = "joined" if event == "peer_joined" else "left"
            marks.append(Mark(max(commits, default=-1), kind, peer, names[peer], str(record.get("reason") or "")))
    losses = sorted(evaluations.items())
    return Summary(
        epochs=len(commits),
        peers_joined=len(joined),
        samples_committed=sum(int(commit.get("samples") or 0) for commit in commits.values()),
        rounds_committed=len(commits),
        rounds_retried=retried,
        loss_first=losses[0][1] if losses else None,
        loss_last=losses[-1][1] if losses else None,
        train_curve=tuple((e, float(c["loss"])) for e, c in sorted(commits.items()) if c.get("loss") is not None),
        eval_curve=tuple(losses),
        marks=tuple(marks),
        duration_s=duration,
    )
