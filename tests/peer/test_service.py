"""What a peer's service refuses, and with which reason; the call's context is a stand-in."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from peer.service import PeerService
from protocols.reasons import Reason
from protocols.wire import dugnad_pb2 as pb


class Refused(Exception):
    pass


class Context:
    async def read(self) -> pb.ReduceUp:
        return pb.ReduceUp(open=pb.ReduceOpen(plan_digest="ab" * 32, shard=0))

    async def abort(self, code: Any, details: str) -> None:
        raise Refused(details)


def refusal(reducing: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    async def admitted(service: PeerService, context: Any) -> str:
        return "bob"

    async def found(plan_digest: str, shard: int) -> Any:
        return reducing

    monkeypatch.setattr(PeerService, "_admit", admitted)
    service = PeerService(SimpleNamespace(exchanges=SimpleNamespace(reducing=found)), None)  # type: ignore[arg-type]
    with pytest.raises(Refused) as refused:
        asyncio.run(service.Reduce(None, Context()))
    return str(refused.value).split(":")[0]


def test_a_contribution_to_an_attempt_that_is_over_is_refused_as_superseded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(None, monkeypatch) == Reason.SUPERSEDED.value


def test_a_contribution_of_somebody_outside_the_plan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(plan=SimpleNamespace(members=("ann", "cid")))
    assert refusal(other, monkeypatch) == Reason.NOT_A_MEMBER.value
