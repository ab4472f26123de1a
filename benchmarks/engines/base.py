"""What a benchmark asks of an engine: one process of it is one peer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.links import Link
from benchmarks.vectors import Vector

Greeting = dict[str, Any]  # JSON: what a peer tells the others


class NotAveragedError(Exception):
    """The engine itself says that this round did not average everybody."""


@dataclass(frozen=True)
class PeerSetup:
    """What one process is told of the benchmark: which peer it is, and what all of them measure."""

    rank: int
    links: tuple[Link, ...]
    address: str  # of this peer, an IPv4 address
    device: str  # the network device that has it
    params: int
    codec: str
    split: str
    folder: Path

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "folder": str(self.folder)})

    @classmethod
    def from_json(cls, text: str) -> PeerSetup:
        fields = json.loads(text)
        links = tuple(Link(**link) for link in fields.pop("links"))
        return cls(**{**fields, "links": links, "folder": Path(fields["folder"])})

    @property
    def link(self) -> Link:
        return self.links[self.rank]

    @property
    def peers(self) -> int:
        return len(self.links)

    @property
    def contributors(self) -> tuple[int, ...]:
        return tuple(rank for rank, link in enumerate(self.links) if not link.auxiliary)

    @property
    def noise(self) -> Path:
        return self.folder / "noise"


class Engine(Protocol):
    """Its methods are called in this order, the last four again and again; all on the main thread."""

    def start(self, first: Greeting | None) -> Greeting:
        """Listen. `first`: what rank 0 said, None there; everybody's greetings go to connect()."""

    def connect(self, greetings: list[Greeting]) -> None:
        """All others listen by now."""

    def prepare(self, turn: int, vector: Vector) -> None:
        """Untimed: take what this peer gives in the round, find the others."""

    def prepared(self) -> bool:
        """Untimed: everybody has been prepared; whether this round can begin."""

    def run(self) -> None:
        """Timed: average. Raises NotAveragedError."""

    def result(self) -> Vector | None:
        """Untimed: the averages; None where this engine's auxiliary peers get none. The next round may begin."""
