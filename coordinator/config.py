"""What an organiser chooses when a coordinator starts. The run file has all that concerns the training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from protocols.run_spec import RunSpec
from protocols.transport import addresses

DEFAULT_PORT = 29100
PORTS = 4  # enrolment, discovery, and two of the auxiliary peer


@dataclass(frozen=True, kw_only=True)
class CoordinatorConfig:
    """The options of `dugnad coordinator`."""

    run_file: Path
    """The run spec, TOML."""
    directory: Path | None = None
    """The run's folder: identity, the task's files, history, checkpoints. None takes runs/<run.name>."""
    host: str = "0.0.0.0"
    """IP address to listen on; `::` for all of IPv6."""
    announce: tuple[str, ...] = ()
    """Hosts that volunteers reach this machine by; they go into the ticket. Empty takes this machine's own address."""
    port: int = DEFAULT_PORT
    """Enrolment listens here, discovery on the next port and the auxiliary peer on the two after; 0 takes free ones."""
    json: bool = False
    """Print the ticket as one JSON object on standard output."""

    def checked(self) -> CoordinatorConfig:
        """With its addresses as sockets take them. Raises SpecError, UsageError and PortInUseError for what is wrong already:
        torch takes seconds, corpus and tokenizer minutes."""
        RunSpec.load(self.run_file)
        announce = tuple(addresses.host_alone(host) for host in self.announce)
        config = replace(self, host=addresses.host_to_listen_on(self.host), announce=announce)
        if config.port:
            addresses.check_free(config.host, range(config.port, config.port + PORTS))
        return config
