"""Who else is there: the directory is asked for others, and told where this peer is, as long as it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from peer.environment import Environment
from peer.epoch.bans import Bans
from protocols.errors import LocalError, PortInUseError, RefusedError, RemoteError
from protocols.reasons import Reason
from protocols.round.records import Candidate, Hello, Standing
from protocols.transport.announcements import ANNOUNCEMENT_S
from protocols.transport.interface import News
from protocols.transport.whereabouts import ask

# Others are looked for this often: eagerly while there are none.
LOOK_S, EAGER_LOOK_S = 5.0, 0.5
ANNOUNCE_S = ANNOUNCEMENT_S / 3
_log = logging.getLogger(__name__)


class Neighbours:
    """Calls `found` with the other reachable peers at every look, and `heard` with the standing of a random one and its id.

    Ends with a RefusedError when the coordinator says that this peer is banned.
    """

    def __init__(
        self,
        environment: Environment,
        hello: Callable[[], Hello],
        *,
        found: Callable[[Iterable[Candidate]], None],
        heard: Callable[[Standing, str], None],
        bans: Bans,
    ) -> None:
        self._environment = environment
        self._hello = hello
        self._found = found
        self._heard = heard
        self._bans = bans
        self.news = News()  # the newest

    async def run(self) -> None:
        """Until cancelled. Failures are logged: peers that know each other go on without a directory."""
        environment, directory = self._environment, self._environment.directory
        announced, announced_at = None, float("-inf")
        while True:
            others: list[Candidate] = []
            try:
                if self._hello() != announced or environment.clock() - announced_at >= ANNOUNCE_S:
                    announced, announced_at = self._hello(), environment.clock()
                    self.news = await directory.announce(announced)
                    if self.news.bans is not None:
                        self._bans.hear(self.news.bans, "coordinator")
                left_out = {environment.me, *self._bans.peers}
                others = [other for other in (*self.news.peers, *await directory.peers()) if other.peer not in left_out]
                self._found(others)
            except (RemoteError, LocalError, PortInUseError) as error:
                if isinstance(error, RefusedError) and error.reason == Reason.BANNED.value:
                    raise RefusedError(error.sentence, reason=error.reason, remedy="Ask the organiser.") from error
                _log.warning("discovery: %s", error)
            except Exception:  # noqa: BLE001  others may have caused it: it must not end the peer
                _log.warning("discovery failed in a way that no check foresaw; it is tried again", exc_info=True)
            if others:
                # Now and then one of them knows of a heavier lineage that this peer's leader does not know.
                with contextlib.suppress(RemoteError):
                    whom = environment.random.choice(others)
                    self._heard((await ask(environment.transport, whom)).standing, whom.peer)
            await asyncio.sleep(LOOK_S if others else EAGER_LOOK_S)
