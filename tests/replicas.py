"""Real replicas for tests, put together as peer/app.py does it, and the small job that they train."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peer.settings import RunSettings
from peer.simulation.problem import Device, Problem
from peer.training.replica import Replica
from peer.training.strategies import build_strategy
from peer.training.strategies.accumulate import Accumulate
from protocols.gradients.error_feedback import ErrorFeedback
from protocols.gradients.slices import Slices
from protocols.optimization import build_optimizer, build_scheduler
from protocols.round.records import SignedCommit, Tip
from protocols.run_spec import RunSpec
from protocols.signing import check_signed
from protocols.tasks.base import Task
from protocols.tasks.registry import open_task, prepare
from tests.factories import CORPUS, RUN, run_spec

# -- a small job -----------------------------------------------------------------------------------------------------------------

SEED = 20210614
LEARNING_RATE, WARMUP = 0.05, 2
PEERS = ("ann", "bob", "cid", "dag")
SAMPLES_EACH, INPUTS, OUTPUTS = 160, 20, 6
ADAMW = {"name": "adamw", "learning_rate": LEARNING_RATE, "betas": (0.9, 0.95), "epsilon": 1e-8, "weight_decay": 0.02}
SGD = {"name": "sgd", "learning_rate": LEARNING_RATE, "momentum": 0.9, "weight_decay": 0.0}


def make_model(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(SEED)
    model = nn.Sequential(
        nn.Linear(INPUTS, 64), nn.Tanh(), nn.LayerNorm(64), nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, OUTPUTS, bias=False)
    )
    return model.to(dtype)


@dataclass(frozen=True)
class Data:
    """Sample number `counter` of a peer is row `counter` of its own inputs and targets, which begin anew when they end."""

    inputs: dict[str, torch.Tensor]  # (SAMPLES_EACH, INPUTS)
    targets: dict[str, torch.Tensor]  # (SAMPLES_EACH, OUTPUTS)

    @classmethod
    def make(cls, dtype: torch.dtype) -> Data:
        draw = torch.Generator().manual_seed(SEED + 1)
        # Each peer's samples pull another way and are of another scale: whoever weighs them wrongly ends up elsewhere.
        inputs = {peer: torch.randn(SAMPLES_EACH, INPUTS, generator=draw, dtype=torch.float64) for peer in PEERS}
        targets = {
            peer: (1 + index) * torch.randn(SAMPLES_EACH, OUTPUTS, generator=draw, dtype=torch.float64) + index
            for index, peer in enumerate(PEERS)
        }
        return cls({p: x.to(dtype) for p, x in inputs.items()}, {p: y.to(dtype) for p, y in targets.items()})

    def loss_sum(self, model: nn.Module, peer: str, rows: slice) -> torch.Tensor:
        return SquaredError().loss(model, self.batch(peer, rows.start, rows.stop))

    def batch(self, peer: str, first: int, end: int) -> dict[str, torch.Tensor]:
        rows = torch.arange(first, end) % SAMPLES_EACH
        return {"inputs": self.inputs[peer][rows], "targets": self.targets[peer][rows]}

    def batches(self, peer: str, micro_batch: int) -> Iterator[dict[str, torch.Tensor]]:
        return (self.batch(peer, at, at + micro_batch) for at in itertools.count(0, micro_batch))


class SquaredError:
    """The task: its loss is the sum over a batch of each sample's mean squared error."""

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        error: torch.Tensor = (model(batch["inputs"]) - batch["targets"]).square().mean(dim=1)
        return error.sum()

    def samples_in(self, batch: dict[str, torch.Tensor]) -> int:
        return len(batch["inputs"])


def small_job(dtype: torch.dtype, optimizer: dict[str, Any], **change: Any) -> Problem:
    """The job for a simulated swarm; `change` are fields of Problem."""
    data, spec = Data.make(dtype), spec_of(optimizer)
    slices = Slices.of(sum(parameter.numel() for parameter in make_model(dtype).parameters()))
    values = 3 if optimizer["name"] == "adamw" else 2  # the parameter and its slots
    options: dict[str, Any] = {
        "device": lambda: Device(make_model(dtype), spec),
        "task": SquaredError(),
        "batches": lambda peer, incarnation, micro_batch: data.batches(peer, micro_batch),
        "slices": slices,
        "value_bytes": values * dtype.itemsize,
    }
    return Problem(**{**options, **change})


def spec_of(optimizer: dict[str, Any]) -> RunSpec:
    schedule = {"name": "constant_with_warmup", "warmup_steps": WARMUP}
    return run_spec(optimizer=optimizer, schedule=schedule)


LANGUAGE_JOB = """
[run]
name = "small"
seed = {seed}
[task]
sequence_length = 32
[task.model]
model_type = "gpt2"
n_embd = {width}
n_layer = 2
n_head = 2
n_positions = 32
resid_pdrop = 0.0
embd_pdrop = 0.0
attn_pdrop = 0.0
[task.data]
source = "files"
paths = ["*.txt"]
held_out_bytes = 16384
[task.tokenizer]
vocab_size = 400
[optimizer]
learning_rate = {learning_rate}
[schedule]
warmup_steps = {warmup_steps}
"""


def language_job(folder: Path, **values: Any) -> tuple[RunSpec, Task]:
    """LANGUAGE_JOB with these values, prepared in `folder`. It trains on CORPUS, wherever that lies."""
    spec = prepare(RunSpec.from_toml(LANGUAGE_JOB.format(**values), CORPUS), folder, lambda line: None)
    return spec, open_task(spec, folder)


def parameters(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).double()


def make_replica(
    model: nn.Module,
    spec: RunSpec,
    genesis: Tip,
    *,
    peer: str = "ann",
    at_genesis: bool = True,
    verify: Callable[[SignedCommit], SignedCommit] | None = None,
    **change: Any,
) -> Replica:
    """Optimizer and schedule come from the spec, settings from their defaults and `change`. No signature is good by default."""
    options: dict[str, Any] = {
        "run_digest": RUN,
        "target_batch_size": 24,
        "max_epochs": None,
        "codecs": (genesis.codec,),
        "genesis": genesis,
        "genesis_sha256": "00" * 32,
    }
    settings = RunSettings(**{**options, **change})
    optimizer = build_optimizer(spec, model)
    strategy = build_strategy(settings, model, optimizer, build_scheduler(spec, optimizer))
    verify = verify or partial(check_signed, authority=b"")
    it = Replica(model, strategy, settings, error_feedback=ErrorFeedback(peer, 1), verify=verify)
    if at_genesis:
        it.tip = genesis
    return it


def gradient_of(it: Replica) -> torch.Tensor:
    """(elements,) what backward() adds into."""
    assert isinstance(it.strategy, Accumulate)
    return it.strategy.gradient.flat
