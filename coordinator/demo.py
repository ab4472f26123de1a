"""`dugnad demo`: the whole product on one computer, as separate processes on loopback.

A coordinator and three peers; a fourth peer joins late; one peer is killed with SIGKILL. What is on the screen is the
coordinator's own view.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coordinator.checkpoints.store import Checkpoints
from coordinator.report.picture import write_loss_curve
from coordinator.report.summary import Summary, summarise
from coordinator.report.terminal_curve import terminal_loss_curve
from protocols.errors import LocalError
from protocols.host.event_log import read_events
from protocols.run_spec import RunSpec
from protocols.ticket_source import VARIABLE

RUN_FILE = Path(__file__).resolve().parent.parent / "examples" / "python_lm" / "run.toml"
PEERS_AT_FIRST = 3
# Shares of the run's epochs at which the fourth peer is started, and a peer is killed.
LATE_JOIN, KILL = 0.25, 0.55
LIMIT_S = 600.0
PROMPT = "def "


@dataclass
class _Processes:
    """The demo's children: none outlives it (see protocols/host/child_process.py)."""

    directory: Path
    ticket: str = ""
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start_coordinator(self) -> None:
        coordinator = self._start(
            "coordinator",
            ["coordinator", str(RUN_FILE), "--dir", str(self.directory), "--host", "127.0.0.1", "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=None,  # the terminal: the coordinator's live view is the demo's
        )
        assert coordinator.stdout is not None
        line = coordinator.stdout.readline()
        if not line:
            raise LocalError("the coordinator ended before it had a ticket", remedy="Its message is above.")
        self.ticket = str(json.loads(line)["ticket"])

    def start_peer(self, name: str) -> None:
        home = self.directory / "peers" / name
        home.mkdir(parents=True, exist_ok=True)
        with (home / "output.log").open("ab") as log:
            arguments = ["peer", "--home", str(home), "--name", name, "--threads", "1", "--yes"]
            self._start(name, arguments, stdout=log, stderr=log)

    def _start(self, name: str, arguments: list[str], **streams: Any) -> subprocess.Popen[bytes]:
        child = self.children[name] = subprocess.Popen(
            [sys.executable, "-m", "dugnad", *arguments, "--end-with-standard-input"],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", VARIABLE: self.ticket},
            **streams,
        )
        return child

    def close(self) -> None:
        for child in self.children.values():
            if child.stdin is not None:
                child.stdin.close()
        for child in self.children.values():
            child.wait(timeout=30)
            if child.stdout is not None:
                child.stdout.close()


def run_demo(directory: Path | None, *, as_json: bool) -> None:
    """Raises LocalError when a process of the demo fails."""
    directory = directory or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    epochs = RunSpec.load(RUN_FILE).training.max_epochs
    assert epochs is not None
    began = time.monotonic()
    with closing(_Processes(directory)) as processes:
        processes.start_coordinator()
        for number in range(PEERS_AT_FIRST):
            processes.start_peer(f"peer-{number + 1}")
        killed = _play(processes, directory / "events.jsonl", epochs)
    _show(directory, killed, time.monotonic() - began, as_json=as_json)


def _play(processes: _Processes, events: Path, epochs: int) -> list[str]:
    """Until the coordinator is done: the late peer and the kill, each at its time. Returns the names of the killed."""
    late, victim = f"peer-{PEERS_AT_FIRST + 1}", "peer-2"
    killed: list[str] = []
    deadline = time.monotonic() + LIMIT_S
    while (code := processes.children["coordinator"].poll()) is None:
        if time.monotonic() > deadline:
            raise LocalError(
                f"the demo is not done after {LIMIT_S / 60:.0f} minutes", remedy=f"See the logs in {processes.directory}."
            )
        epoch = max((int(record["epoch"]) for record in read_events(events) if record["event"] == "committed"), default=0)
        if late not in processes.children and epoch >= LATE_JOIN * epochs:
            processes.start_peer(late)
        if not killed and epoch >= KILL * epochs:
            processes.children[victim].kill()
            killed.append(victim)
        time.sleep(0.25)
    if code != 0:
        raise LocalError(f"the coordinator ended with exit code {code}", remedy=f"See the logs in {processes.directory}.")
    return killed


def _show(directory: Path, killed: list[str], seconds: float, *, as_json: bool) -> None:
    # Imported here: torch, for the unigram loss and the sample, after the training is over.
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    from protocols.tasks.assets import folder_of
    from protocols.tasks.language.causal_lm import CausalLanguageTask

    transformers_logging.disable_progress_bar()

    def say(text: str) -> None:
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)

    summary = summarise(read_events(directory / "events.jsonl"))
    checkpoint = Checkpoints(directory / "checkpoints", keep=1).latest()
    if checkpoint is None:
        raise LocalError("the run left no checkpoint", remedy=f"See the logs in {directory}.")
    spec = RunSpec.from_toml((directory / "run.toml").read_text(encoding="utf-8"), folder=RUN_FILE.parent)
    task = CausalLanguageTask(spec, folder_of(directory))
    say("Measuring the unigram loss to compare with")
    unigram = task.unigram_loss(spec.evaluation.max_samples)
    picture = write_loss_curve(directory / "loss.png", summary, unigram_loss=unigram, title="dugnad demo")
    say(terminal_loss_curve(summary, 76, 18, unigram_loss=unigram))
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path)
    say(f"\nThe checkpoint continues {PROMPT!r}:\n")
    say(_indented(task.generate(model, PROMPT, 60, top_k=20, seed=1)))
    say(f"\nloss curve:  {picture}\ncheckpoint:  {checkpoint.path}")
    say(_sentence(summary, unigram))
    if as_json:
        numbers = {
            "epochs": summary.epochs,
            "peers_joined": summary.peers_joined,
            "peers_killed": len(killed),
            "samples_committed": summary.samples_committed,
            "target_batch_size": spec.training.target_batch_size,
            "loss_first": summary.loss_first,
            "loss_last": summary.loss_last,
            "loss_unigram": unigram,
            "checkpoint": str(checkpoint.path),
            "loss_curve": str(picture),
            "duration_s": round(seconds, 1),
            "rounds_committed": summary.epochs,
            "rounds_retried": summary.rounds_retried,
        }
        print(json.dumps(numbers), flush=True)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()[:12])


def _sentence(summary: Summary, unigram: float) -> str:
    return (
        f"{summary.peers_joined} peers made {summary.epochs} epochs from {summary.samples_committed:,} samples; "
        "one was killed on the way.\n"
        f"{summary.rounds_retried} attempts had to be repeated; no sample was counted twice.\n"
        f"Held-out loss {summary.loss_first:.2f} -> {summary.loss_last:.2f} {summary.loss_unit} (unigram: {unigram:.2f})."
    )
