"""What is known of a checkpoint, as `training_state.json` in its folder says it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from pydantic import TypeAdapter

SNAPSHOT = "training_state.safetensors"
STATE = "training_state.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointFacts:
    """A state in numbers. `run` is the run's name, `peers` are the contributors of its commit, `loss` is held-out, in the task's
    unit."""

    run: str
    run_digest: str
    epoch: int
    lineage: str
    samples: int
    peers: list[str]
    loss: float | None

    @property
    def finite_loss(self) -> float | None:
        """The held-out loss, if it was measured and is a finite number."""
        return self.loss if self.loss is not None and math.isfinite(self.loss) else None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk whose snapshot was found whole."""

    path: Path
    facts: CheckpointFacts

    @property
    def snapshot_path(self) -> Path:
        return self.path / SNAPSHOT


def write_facts(directory: Path, facts: CheckpointFacts) -> None:
    """Write `training_state.json`. Call it last: it holds the SHA-256 of every other file in the folder."""
    digests = {path.relative_to(directory).as_posix(): _sha256(path) for path in sorted(directory.rglob("*")) if path.is_file()}
    document = {
        **asdict(facts),
        "loss": facts.finite_loss,
        "written_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "files": digests,
    }
    (directory / STATE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def open_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint in the folder `path`; None, with a warning, if its snapshot or its facts are damaged."""
    try:
        document = json.loads((path / STATE).read_bytes())
        # The snapshot alone decides: a model card that the organiser edited must not cost the run its training.
        if _sha256(path / SNAPSHOT) != document["files"][SNAPSHOT]:
            raise ValueError(f"{SNAPSHOT} does not match its SHA-256")
        return Checkpoint(path, TypeAdapter(CheckpointFacts).validate_python(document))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("checkpoint-damaged: passing over %s (%s: %s)", path, type(error).__name__, error)
        return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
