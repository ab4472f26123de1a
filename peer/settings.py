"""What engine and training need to know of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocols.round.records import Tip
from protocols.run_spec import RunSpec

if TYPE_CHECKING:  # training needs no sockets
    from protocols.transport.enrolling import Genesis


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The run, as its peers agreed on it. Every peer of a run has equal settings: they follow from the spec and the genesis."""

    run_digest: str
    target_batch_size: int
    """Samples that one epoch averages, over all peers together."""

    max_epochs: int | None
    codecs: tuple[str, ...]
    """Those that a commit may name for the next plan, least lossy first."""

    genesis: Tip
    genesis_sha256: str
    """Digest of the first parameters."""

    overlap: bool = False
    max_grad_norm: float = 1.0
    """0: no clipping."""

    strategy: str = "accumulate"
    """A name of `peer.training.strategies.STRATEGIES`."""

    local_batch_size: int = 1
    """Samples of a local step."""

    outer_learning_rate: float = 1.0
    outer_momentum: float = 0.0

    rule: str = "mean"
    """A name of `protocols.gradients.aggregation.RULES`."""

    max_share: float = 1.0
    """Of one contributor in an average."""

    @classmethod
    def of(cls, spec: RunSpec, genesis: Genesis) -> RunSettings:
        """From the resolved spec, as the coordinator serves it."""
        return cls(
            run_digest=spec.digest,
            target_batch_size=spec.training.target_batch_size,
            max_epochs=spec.training.max_epochs,
            codecs=spec.averaging.codecs,
            genesis=genesis.tip(spec.digest, spec.averaging.first_codec),
            genesis_sha256=genesis.parameters_sha256,
            overlap=spec.averaging.overlap,
            max_grad_norm=spec.training.max_grad_norm,
            strategy=spec.training.strategy,
            local_batch_size=spec.training.local_batch_size,
            outer_learning_rate=spec.training.outer_learning_rate,
            outer_momentum=spec.training.outer_momentum,
            rule=spec.averaging.rule,
            max_share=spec.averaging.max_share,
        )
