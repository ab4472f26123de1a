"""What a peer's service refuses on a bulk connection, and with which reason; the connection is a stand-in."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from peer.epoch.service import PeerService
from protocols.errors import BadMessageError, UnreachableError
from protocols.reasons import Reason
from protocols.transport.bandwidth import Bandwidth
from protocols.transport.bulk import Kind
from protocols.wire import dugnad_pb2 as pb


class Stream:
    peer = "bob"

    def __init__(self) -> None:
        self.sent: list[tuple[Kind, Any]] = []

    async def record(self, kind: type[Any], length: int) -> Any:
        return pb.ReduceOpen(plan_digest="ab" * 32, shard=0)

    async def send_record(self, kind: Kind, record: Any) -> None:
        self.sent.append((kind, record))

    async def drain(self) -> None:
        pass


def served(reducing: Any, kind: Kind = Kind.OPEN) -> Stream:
    async def found(plan_digest: str, shard: int) -> Any:
        return reducing

    async def serve() -> None:
        service = PeerService(
            SimpleNamespace(round_traffic=SimpleNamespace(reducing=found), member=None, bandwidth=Bandwidth()), None
        )  # type: ignore[arg-type]
        await service.bulk(stream, kind, 10)  # type: ignore[arg-type]

    stream = Stream()
    with pytest.raises(UnreachableError):
        asyncio.run(serve())
    return stream


def test_a_contribution_to_an_attempt_that_is_over_is_refused_as_superseded() -> None:
    ((kind, refused),) = served(None).sent
    assert (kind, refused.reason) == (Kind.REFUSED, Reason.SUPERSEDED.value)


def test_a_contribution_of_somebody_outside_the_plan_is_refused() -> None:
    other = SimpleNamespace(plan=SimpleNamespace(members=("ann", "cid")))
    ((kind, refused),) = served(other).sent
    assert (kind, refused.reason) == (Kind.REFUSED, Reason.NOT_A_MEMBER.value)


def test_what_is_no_request_ends_the_connection() -> None:
    with pytest.raises(BadMessageError, match="no request"):
        served(None, Kind.DONE)
