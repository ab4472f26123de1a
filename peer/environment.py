"""What a peer stands on: the network, who it is there, time and chance. Real in production, simulated in tests."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from random import Random

from protocols.gradients.shard_average import Chunking
from protocols.round.records import Hello
from protocols.signing import Signer
from protocols.transport.interface import Directory, Transport

EventSink = Callable[..., None]  # (event name, **fields)


@dataclass(frozen=True)
class Sizes:
    """Sizes on which no rule of the protocol depends. The simulator's vectors are small, and so are its chunks."""

    chunking: Chunking = field(default_factory=Chunking)
    kept_commits: int = 16
    """Commits whose results a peer keeps for those who replay them, if they are not too large."""

    snapshot_chunk_bytes: int = 1 << 20
    probe_s: float = 0.75
    """How long a bandwidth probe sends."""


async def one_way_in(hello: Hello) -> AsyncGenerator[Hello, None]:
    """A peer that knows one address of its own."""
    yield hello


@dataclass(frozen=True)
class Environment:
    """Everything outside of one peer. `me` is its id; `clock` gives seconds, and never goes back."""

    me: str
    transport: Transport
    directory: Directory
    signer: Signer
    clock: Callable[[], float] = time.monotonic
    random: Random = field(default_factory=Random)
    sizes: Sizes = field(default_factory=Sizes)
    events: EventSink = lambda event, /, **fields: None
    progress: Callable[[int, int], None] = lambda done, total: None
    """Called with (bytes done, bytes in total) while a snapshot is fetched."""
    ways_in: Callable[[Hello], AsyncGenerator[Hello, None]] = one_way_in
    """The hello of this peer at each address under which others may reach it, those first that are likelier to work."""
