"""What a run wants of this computer, shown and asked for once, before anything of the volunteer's is read or fetched."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import typer
from humanize import naturalsize
from rich.console import Console
from rich.text import Text

from protocols.errors import UsageError
from protocols.gradients.codecs import CODECS
from protocols.host.files import write_durably
from protocols.host.terminal import labelled, printable
from protocols.run_spec import RunSpec
from protocols.tasks.base import Task

# fp32 weights, gradients and AdamW's two moments, and as much again for a snapshot, a vector that is averaged, and activations.
MEMORY_BYTES_A_PARAMETER = 32
STATE_BYTES_A_PARAMETER = 12
# Of a contribution's size, each way and epoch: its own shards and the averages of the others', and as much for what it reduces.
CONTRIBUTIONS_A_ROUND = 2


@dataclass(frozen=True)
class Demands:
    """What a run wants."""

    run: str
    coordinator: str
    parameters: int
    samples: int
    """Of an epoch, by all peers together."""
    contribution_bytes: int
    disk_bytes: int
    home: Path
    data: str
    """What is read or fetched to train on, in words."""

    @classmethod
    def of(cls, spec: RunSpec, task: Task, home: Path, coordinator: str) -> Demands:
        """`home` has the run's files already."""
        parameters = parameters_of(task)
        return cls(
            run=spec.run.name,
            coordinator=coordinator,
            parameters=parameters,
            samples=spec.training.target_batch_size,
            contribution_bytes=CODECS[spec.averaging.first_codec].encoded_bytes(parameters),
            disk_bytes=sum(file.stat().st_size for file in home.rglob("*") if file.is_file()),
            home=home,
            data=task.data_source,
        )

    def rows(self) -> list[tuple[str, str]]:
        """(what, how much)."""
        epoch = CONTRIBUTIONS_A_ROUND * self.contribution_bytes
        state = naturalsize(STATE_BYTES_A_PARAMETER * self.parameters)
        return [
            ("run", f"{printable(self.run, 60)}, by the coordinator at {self.coordinator}"),
            ("model", f"{self.parameters:,} parameters, {self.samples:,} samples in a batch of all peers"),
            ("memory", f"about {naturalsize(MEMORY_BYTES_A_PARAMETER * self.parameters)}, beside half a GB for the program"),
            ("disk", f"{naturalsize(self.disk_bytes)} in {self.home}, and a log"),
            ("line", f"up to {naturalsize(epoch)} each way for an epoch ({naturalsize(60 * epoch)} an hour at one a minute)"),
            ("", f"and {state} once, to join; --max-upload and --max-download are limits"),
            ("data", self.data),
        ]


def parameters_of(task: Task) -> int:
    """Elements of the task's model, which takes no memory where it can be built without."""
    try:
        with torch.device("meta"):
            model = task.build_model()
    except Exception:  # noqa: BLE001  some models compute while they are built
        model = task.build_model()
    return sum(parameter.numel() for parameter in model.parameters())


def ask_once(demands: Demands, digest: str, *, yes: bool) -> bool:
    """Whether the volunteer agrees. Asks unless that was said before, of this run and this data, or with `yes`.

    `digest` is the run spec's. Raises UsageError when there is nobody to ask.
    """
    file = demands.home / "consent.json"
    agreed = {"run": digest, "data": demands.data}
    if not yes and _read(file) != agreed:
        terminal = Console(stderr=True, highlight=False)
        terminal.print("This run wants of your computer:\n")
        terminal.print(labelled([(name, Text(text)) for name, text in demands.rows()]))
        if not sys.stdin.isatty():
            raise UsageError("nobody is at the terminal to agree to that", remedy="Give --yes to agree.")
        if not typer.confirm("\nTake part?", default=True, err=True):
            return False
    write_durably(file, json.dumps(agreed).encode())
    return True


def _read(file: Path) -> object:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
