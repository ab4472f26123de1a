"""What a peer keeps of its enrolment: enough to ask the swarm how it stands when the coordinator is away."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from protocols.errors import DugnadError
from protocols.host.files import write_durably
from protocols.host.home import default_home
from protocols.identity import Credentials, Key, Ticket
from protocols.round.records import Candidate
from protocols.run_spec import RunSpec

FILE = "enrolment.json"
KEY = "identity.key"


def home_of(ticket: Ticket) -> Path:
    """Where the first peer that joins with this ticket lives, unless its owner names another folder."""
    return default_home() / ticket.fingerprint.hex()[:16]


def key_for(ticket: Ticket) -> Key:
    """This computer's key for the run, that of its first peer there. Whatever asks with it takes one use of an invite."""
    home = home_of(ticket)
    home.mkdir(parents=True, exist_ok=True)
    return Key.load_or_create(home / KEY)


@dataclass(frozen=True)
class KeptEnrolment:
    credentials: Credentials
    spec: RunSpec
    peers: tuple[Candidate, ...]


def keep(home: Path, credentials: Credentials, spec: RunSpec, peers: Iterable[Candidate]) -> None:
    """For the owner's eyes alone. `peers`: reachable ones. Raises DiskError."""
    document = {
        "certificate": credentials.certificate.decode(),
        "authority": credentials.authority.decode(),
        "run": spec.to_toml(),
        "peers": [[peer.peer, peer.address] for peer in peers],
    }
    write_durably(home / FILE, json.dumps(document).encode(), mode=0o600)


def kept_in(home: Path) -> KeptEnrolment | None:
    """None when no peer was enrolled there, or what it kept cannot be read."""
    if not (home / KEY).exists():
        return None
    try:
        document = json.loads((home / FILE).read_bytes())
        credentials = Credentials(
            Key.load_or_create(home / KEY), document["certificate"].encode(), document["authority"].encode()
        )
        return KeptEnrolment(
            credentials, RunSpec.from_toml(document["run"]), tuple(Candidate(peer, at) for peer, at in document["peers"])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DugnadError):
        return None
