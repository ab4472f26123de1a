"""What a volunteer may choose. Everything else is the run's, and comes with the ticket."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peer import ranks
from peer.guest.manners import Manners, hours
from peer.guest.person import untouched_s
from protocols.errors import UsageError
from protocols.host.files import matching_files
from protocols.identity import Ticket
from protocols.observations import Role
from protocols.transport import addresses

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class PeerConfig:
    ticket: Ticket
    """What the organiser gave out."""
    role: Role = "contributor"
    """A contributor computes gradients; an auxiliary peer only averages, for those who cannot be reached."""
    client_mode: bool = False
    """Open connections but accept none, without asking others whether they reach this peer."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    micro_batch: int | None = None
    """Samples per forward and backward pass; None finds what fits."""
    precision: Precision | None = None
    """Of the passes through the model; None takes what is fastest here. Parameters and gradients stay in fp32."""
    threads: int | None = None
    """CPU threads for training; None takes what is fastest here."""
    compiled: bool | None = None
    """Whether torch.compile compiles the model; None tries on a GPU whether it pays."""
    retune: bool = False
    """Try anew what is fastest, and forget what was found at an earlier start."""
    host: str | None = None
    """IP address to listen on; None listens where the coordinator is reached from."""
    port: int = 0
    """Port to listen on for calls, the next for shards; 0 takes free ones."""
    announce: str | None = None
    """host, host:port or [IPv6 address]:port under which others reach this peer, when a router forwards that port and the
    next."""
    port_mapping: bool = True
    """Ask the router to forward the ports, where this computer is behind one."""
    max_upload: float | None = None
    """Mbit/s that this peer may send at most, for rounds and state together; None for no limit. At least 1: a chunk of state,
    1 MiB, has to arrive within the 10 s (`snapshot.fetch.IDLE_S`) after which its donor counts as silent."""
    max_download: float | None = None
    """Mbit/s that rounds and state together may take at most; None for no limit."""
    name: str = ""
    """Shown to others beside the peer's id."""
    data: tuple[str, ...] = ()
    """Text files or globs to train on instead of what the run spec names."""
    hours: str | None = None
    """Parts of the day in which the peer works, such as "22:00-07:00, 12:00-13:30"; None for always."""
    on_battery: bool = False
    """Work also while the computer runs on its battery."""
    untouched: float | None = None
    """Work only when nobody has used this computer for so many minutes; None for also beside somebody."""
    share_gpu: bool = False
    """Work also while another program uses the GPU."""
    max_transfer: float | None = None
    """GB that the peer may send and receive in a day, together; None for no limit."""
    load: int = 100
    """Percent of the time in which the peer computes; it rests in between."""
    yes: bool = False
    """Agree to what the run wants without being asked."""
    home: Path | None = None
    """Folder for this peer's key, files and log; None takes the user's data folder."""
    start_from: Path | None = None
    """A snapshot to start from if nobody is further: how a coordinator brings a run into being."""

    @property
    def manners(self) -> Manners:
        """Raises UsageError for hours that cannot be read."""
        return Manners(
            hours=hours(self.hours) if self.hours is not None else (),
            on_battery=self.on_battery or self.role == "auxiliary",  # others depend on it, and its owner may stop it
            untouched_s=self.untouched * 60 if self.untouched is not None else None,
            share_gpu=self.share_gpu,
            max_transfer_bytes=self.max_transfer * 1e9 if self.max_transfer is not None else None,
        )

    def check(self) -> None:
        """Raises UsageError for what can be seen to be wrong without the run."""
        _ = self.manners
        if self.untouched is not None and untouched_s() is None:
            raise UsageError(
                "--untouched: this system does not tell whether somebody uses it", remedy="Use --hours or --load instead."
            )
        check_device_name(self.device)
        if self.role == "auxiliary" and ranks.size() > 1:
            raise UsageError("an auxiliary peer computes nothing, so that it is one process", remedy="Start it without torchrun.")
        if self.client_mode and self.role == "auxiliary":
            raise UsageError("an auxiliary peer in client mode could do nothing: nobody could send it anything to average")
        if self.client_mode and self.announce:
            raise UsageError("--client-mode accepts no connections, so there is nothing to --announce", remedy="Leave one out.")
        if self.host is not None:
            addresses.host_to_listen_on(self.host)
        if self.announce is not None:
            addresses.host_and_port(self.announce)
        for pattern in self.data:
            if not matching_files(Path(pattern)):
                raise UsageError(f"--data: nothing matches {pattern}", remedy="Correct the path; put a glob into quotes.")


def check_device_name(name: str) -> None:
    """Whether it is a name of a device; torch knows whether that is there. Raises UsageError."""
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name) is None:
        raise UsageError(f"there is no device {name!r}", remedy="Devices are auto, cpu, mps, cuda, cuda:1 and so on.")
