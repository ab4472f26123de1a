"""The one way to put a peer together: `dugnad peer`, benchmarks, simulator and tests all do it here."""

from __future__ import annotations

from peer.environment import Environment
from peer.epoch.engine import Engine
from peer.epoch.service import PeerService
from peer.settings import RunSettings
from peer.training.side import TrainingSide
from protocols.round.records import Candidate, Hello, Standing


class Peer:
    """A peer: the engine, and what it answers to others."""

    def __init__(
        self,
        hello: Hello,
        environment: Environment,
        settings: RunSettings,
        training: TrainingSide,
        bootstrap: tuple[Candidate, ...] = (),
        *,
        standing: Standing | None = None,
        engine: type[Engine] = Engine,
    ) -> None:
        """`hello`: who this peer is to others. `bootstrap`: reachable peers that it knows of from the start. `standing`: where
        the coordinator says that the run stands.

        `engine`: a kind of it that tells somebody what it does.
        """
        self.engine = engine(hello, environment, settings, training, bootstrap, standing)
        self.service = PeerService(self.engine)
