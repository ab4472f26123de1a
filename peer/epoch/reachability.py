"""Whether others reach this peer: some of them dial it back, at both ports, when it joins and every so often."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterable

from peer.environment import Environment
from protocols.errors import RemoteError
from protocols.messages import DialBackReply, DialBackRequest
from protocols.round.records import Candidate, Hello
from protocols.transport.interface import Transport, call

# So many peers are asked to dial back, and more than half of those that answer must succeed: a neighbour in the same home may
# reach an address that nobody else does.
ASKED = 3
DIAL_BACK_S = 3.0
CHECK_EVERY_S, CHECK_AGAIN_S = 600.0, 20.0  # the second while nobody has been there to dial back


class Reachability:
    """Decides how this peer introduces itself: as one that takes connections, or in client mode."""

    def __init__(self, environment: Environment, hello: Hello, others: Callable[[], Iterable[Candidate]]) -> None:
        """`hello`: with addresses, unless this peer is to be in client mode. `others`: reachable peers."""
        self._environment = environment
        self._hello = hello
        self._others = others
        self._suspected = asyncio.Event()
        self.problem = ""  # what the others met, if they did not reach this peer
        self.is_checked = False  # somebody has tried

    async def hello(self) -> Hello:
        """Ask others to dial back, and say how to introduce this peer: at the first of its addresses that they reach.

        Without anybody to ask it counts as reachable, at the first.
        """
        if not self._hello.reachable:
            return self._hello
        problems: list[str] = []
        async with contextlib.aclosing(self._environment.ways_in(self._hello)) as ways:
            async for way in ways:
                problem = await self._problem_at(way)
                self.is_checked = problem is not None
                if not problem:
                    self.problem = ""
                    return way
                problems.append(problem)
        self.problem = "; ".join(problems)
        return dataclasses.replace(self._hello, address="", bulk_address="")

    async def _problem_at(self, hello: Hello) -> str | None:
        """What most of those met who dialled back: '' if nothing, None if nobody tried."""
        environment = self._environment
        others = [other for other in self._others() if other.peer != environment.me]
        asked = environment.random.sample(others, min(ASKED, len(others)))
        answers = await asyncio.gather(*(self._problem_of(other, hello) for other in asked))
        problems = [problem for problem in answers if problem is not None]
        if not problems:
            return None
        failed = [problem for problem in problems if problem]
        most = len(problems) if hello.auxiliary else len(problems) / 2  # an auxiliary peer in client mode could do nothing
        return failed[0] if len(failed) >= most else ""

    async def watch(self, present: Callable[[Hello], None], is_leaderless: Callable[[], bool] = lambda: False) -> None:
        """Check again for ever, and `present` what comes of it. An auxiliary peer that has begun stays what it is.

        `is_leaderless`: no leader is known. If the peers that could lead were found unreachable, all wait for one of them.
        """
        if self._hello.auxiliary:
            return
        clock = self._environment.clock
        checked_at = clock()
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._suspected.wait(), CHECK_AGAIN_S)
            is_due = clock() - checked_at >= CHECK_EVERY_S or not self.is_checked or bool(self.problem and is_leaderless())
            if is_due or self._suspected.is_set():
                self._suspected.clear()
                checked_at = clock()
                present(await self.hello())

    def suspect(self) -> None:
        """Somebody could not reach this peer: `watch` checks at once."""
        self._suspected.set()

    async def _problem_of(self, other: Candidate, hello: Hello) -> str | None:
        """What `other` met when it dialled back: '' if nothing, None if it did not try."""
        request = DialBackRequest(hello.address, hello.bulk_address)
        try:
            reply: DialBackReply = await call(self._environment.transport, other, request, 2 * DIAL_BACK_S + 1.0)
        except RemoteError:
            return None
        return reply.problem


async def dial_back(transport: Transport, peer: str, request: DialBackRequest) -> DialBackReply:
    """Try both addresses of `peer`, which asked for it."""
    try:
        await transport.dial(Candidate(peer, request.address), DIAL_BACK_S)
    except RemoteError as error:
        return DialBackReply(f"{request.address} (calls): {error}")
    try:
        await transport.dial_bulk(peer, request.bulk_address, DIAL_BACK_S)
    except RemoteError as error:
        return DialBackReply(f"{request.bulk_address} (shards): {error}")
    return DialBackReply("")
