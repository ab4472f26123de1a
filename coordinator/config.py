"""What an organiser may choose when starting a coordinator; everything about the training is in the run file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_PORT = 29100


@dataclass(frozen=True, kw_only=True)
class CoordinatorConfig:
    run_file: Path
    """The run spec, TOML."""
    directory: Path | None = None
    """The run's folder: identity, tokenizer, history, checkpoints. None takes runs/<run.name>."""
    host: str = "0.0.0.0"
    """IP address to listen on; `::` for all of IPv6."""
    announce: tuple[str, ...] = ()
    """Hosts that volunteers reach this machine by; they go into the ticket. Empty takes this machine's own address."""
    port: int = DEFAULT_PORT
    """Enrolment listens here, discovery on the next port and the auxiliary peer on the two after; 0 takes free ones."""
    json: bool = False
    """Print one JSON object on standard output at the end."""
