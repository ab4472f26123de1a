"""A run in numbers, read from its events.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Curve = tuple[tuple[int, float], ...]  # (epoch, loss), by epoch


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
    `loss_first` and `loss_last` are held-out losses. All losses are in `loss_unit`, the task's ("" if the record does not say).
    """

    epochs: int
    peers_joined: int
    samples_committed: int
    rounds_retried: int
    loss_first: float | None
    loss_last: float | None
    train_curve: Curve
    eval_curve: Curve
    marks: tuple[Mark, ...]
    duration_s: float
    loss_unit: str

    @property
    def loss_label(self) -> str:
        return f"loss ({self.loss_unit})" if self.loss_unit else "loss"


def summarise(events: Iterable[dict[str, Any]]) -> Summary:
    commits: dict[int, dict[str, Any]] = {}
    evaluations: dict[int, float] = {}
    joined: dict[str, None] = {}
    names: dict[str, str] = {}
    marks: list[Mark] = []
    retried = 0
    duration = 0.0
    before: float | None = None
    loss_unit = ""
    for record in events:
        event, at = record["event"], float(record["time"])
        # Time in which no coordinator ran is not the run's; a clock set back counts as nothing.
        if before is not None and event not in ("run_started", "run_resumed"):
            duration += max(0.0, at - before)
        before = at
        loss_unit = str(record.get("loss_unit") or loss_unit)
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
        rounds_retried=retried,
        loss_first=losses[0][1] if losses else None,
        loss_last=losses[-1][1] if losses else None,
        train_curve=tuple((e, float(c["loss"])) for e, c in sorted(commits.items()) if c.get("loss") is not None),
        eval_curve=tuple(losses),
        marks=tuple(marks),
        duration_s=duration,
        loss_unit=loss_unit,
    )


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred mean over about a thirtieth of the curve, so that the trend shows through the noise of single batches."""
    reach = len(values) // 60
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
