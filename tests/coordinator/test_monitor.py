"""The organiser's loop against a disk that is full and peers that are gone."""

from __future__ import annotations

import io
import queue
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console as Terminal

from coordinator.checkpoints.store import Checkpoints
from coordinator.genesis import open_run
from coordinator.monitor import Monitor, Run
from coordinator.sinks.console import Console
from coordinator.sinks.history import History
from protocols.errors import DiskError, UnreachableError
from protocols.host.event_log import read_events
from protocols.observations import Observation
from protocols.optimization import build_optimizer, build_scheduler
from protocols.run_spec import RunSpec
from protocols.tasks.registry import open_task

SPEC = """
run.name = "monitor"
data = { source = "files", paths = ["*.txt"], held_out_bytes = 4096 }
tokenizer.vocab_size = 300
training = { target_batch_size = 8, sequence_length = 16 }
[model]
model_type = "gpt2"
n_embd = 16
n_layer = 1
n_head = 1
n_positions = 16
"""


class FullDisk(Checkpoints):
    def write(self, *_: Any, **__: Any) -> Path:
        raise DiskError("cannot write the checkpoint: No space left on device", remedy="Free some space.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    for number in range(12):
        lines = (f"line {number * 97 + i} says {(number * 31 + i * 7) % 101} and {(i * i + number) % 89}" for i in range(60))
        (tmp_path / f"text-{number}.txt").write_text("\n".join(lines))
    (tmp_path / "run.toml").write_text(SPEC)
    return tmp_path


def monitor_in(folder: Path, checkpoints: Checkpoints, history: History, fetch: Any = None) -> tuple[Monitor, bytes]:
    author = RunSpec.load(folder / "run.toml")
    opened = open_run(author, folder / "run", checkpoints, lambda text: None)
    task = open_task(opened.spec, folder / "run")
    model = task.build_model()
    schedule = build_scheduler(opened.spec, build_optimizer(opened.spec, model))
    run = Run(opened.spec, task, model, schedule, opened.authority.pem, "text-generation")
    snapshot = opened.snapshot.read_bytes()
    console = Console(terminal=Terminal(file=io.StringIO()))
    inbox: queue.SimpleQueue[Observation] = queue.SimpleQueue()
    return Monitor(run, history, checkpoints, console, inbox, fetch or (lambda: snapshot)), snapshot


def events(folder: Path) -> list[str]:
    return [record["event"] for record in read_events(folder / "run" / "events.jsonl")]


def test_a_full_disk_costs_the_checkpoint_and_nothing_else(folder: Path) -> None:
    with History(folder / "run") as history:
        monitor, snapshot = monitor_in(folder, FullDisk(folder / "checkpoints", keep=1), history)
        monitor.start(snapshot, resumed=False)
        monitor.keep(checkpoint=True)
        monitor.take_in()
    (failed,) = [r for r in read_events(folder / "run" / "events.jsonl") if r["event"] == "checkpoint_failed"]
    assert "No space left" in failed["reason"] and "Free some space" in failed["reason"]
    assert events(folder).count("evaluated") == 2, "the evaluation of the same state is still written down"


def test_a_checkpoint_is_written_when_asked_for_and_found_at_the_next_start(folder: Path) -> None:
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    with History(folder / "run") as history:
        monitor, snapshot = monitor_in(folder, checkpoints, history)
        monitor.start(snapshot, resumed=False)
        monitor.keep(checkpoint=True)
    newest = checkpoints.latest()
    assert newest is not None and newest.snapshot_path.read_bytes() == snapshot
    again = open_run(RunSpec.load(folder / "run.toml"), folder / "run", checkpoints, lambda text: None)
    assert again.resumed and again.snapshot.read_bytes() == snapshot


def test_without_a_donor_the_monitor_goes_on_and_tries_later(folder: Path) -> None:
    def nobody() -> bytes:
        raise UnreachableError("no peer answers")

    with History(folder / "run") as history:
        monitor, snapshot = monitor_in(folder, Checkpoints(folder / "checkpoints", keep=1), history, nobody)
        monitor.start(snapshot, resumed=False)
        monitor.keep(checkpoint=True)
        monitor.take_in()
    assert "checkpoint_written" not in events(folder)
