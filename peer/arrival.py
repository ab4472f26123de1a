"""What a peer does before it imports torch and transformers, which takes seconds: it enrols, fetches the run's files, and has the
discovery process import hivemind meanwhile. A ticket that is not accepted is refused at once."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peer import listening
from peer.config import PeerConfig
from peer.console import PeerConsole
from peer.milestones import Milestones
from protocols.host.home import Home
from protocols.host.terminal import printable
from protocols.identity import Key
from protocols.tasks.assets import write_asset
from protocols.transport import addresses, discovery
from protocols.transport.enrolling import Enrolment, enrol, fetch_assets, missing_assets
from protocols.transport.kept_enrolment import KEY, home_of, keep
from protocols.transport.network_thread import NetworkThread


@dataclass(frozen=True)
class Arrival:
    """An admitted peer: its locked folder, which holds the run's files, and the thread of its network."""

    home: Path
    network: NetworkThread
    enrolment: Enrolment
    milestones: Milestones
    discovery: asyncio.subprocess.Process
    """See `discovery.launch`."""

    @property
    def discovery_log(self) -> Path:
        return _discovery_log(self.home)


@contextmanager
def arrive(config: PeerConfig) -> Iterator[Arrival]:
    """Raises UsageError for a home in use, PortInUseError, and what `enrol` and `fetch_assets` raise."""
    ticket, milestones = config.ticket, Milestones()
    folder = config.home or home_of(ticket)
    claim = Home.claim if config.home is not None else Home.claim_free
    with claim(folder) as home, NetworkThread() as network:
        with PeerConsole() as console:
            console.status("Enrolling at the coordinator")
            milestones.reached("called")
            key = Key.load_or_create(home.path / KEY)
            enrolment = network.call(enrol(ticket, key))
            milestones.reached("enrolled")
            if config.port and not config.client_mode:
                listen = listening.hosts(config.host, enrolment.coordinator)[0]
                addresses.check_free(listen, (config.port, config.port + 1))
            if missing := missing_assets(enrolment.spec, home.path):
                console.status("Fetching the run's files")
                write = functools.partial(write_asset, enrolment.spec, home.path)
                network.call(fetch_assets(enrolment, ticket, missing, write))
            milestones.reached("files_fetched")
            console.say(f"Admitted to {printable(enrolment.spec.run.name, 32)}. Loading PyTorch, which takes some seconds")
        keep(home.path, enrolment.credentials, enrolment.spec, enrolment.peers)
        process = network.call(discovery.launch(_discovery_log(home.path)))
        try:
            yield Arrival(home.path, network, enrolment, milestones, process)
        finally:
            network.call(_end(process))


async def _end(process: asyncio.subprocess.Process) -> None:
    """Of no use any more: the peer never came to start discovery, or has ended it."""
    if process.returncode is None:
        process.kill()
        await process.wait()


def _discovery_log(home: Path) -> Path:
    return home / "discovery.log"
