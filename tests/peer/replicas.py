"""Real replicas for tests, put together as peer/app.py does it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from peer.settings import RunSettings
from peer.training.replica import Replica
from peer.training.strategies import build_strategy
from peer.training.strategies.accumulate import Accumulate
from protocols.gradients.error_feedback import ErrorFeedback
from protocols.optimization import build_optimizer, build_scheduler
from protocols.round.records import SignedCommit, Tip
from protocols.run_spec import RunSpec
from protocols.signing import check_signed
from tests.protocols.round.fakes import RUN


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
