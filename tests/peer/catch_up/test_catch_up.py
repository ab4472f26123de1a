"""When catching up goes on, and when it gives up: the calls to other peers are stood in for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

import peer.catch_up.catch_up
from peer.catch_up.catch_up import TRIES, CatchUp
from protocols.errors import BadMessageError, RefusedError, RemoteError, UnreachableError
from protocols.reasons import Reason
from protocols.round.records import Candidate, Standing, Tip
from protocols.snapshot.format import StateHeader
from protocols.transport.state_transfer import Whereabouts

ANN, BOB = Candidate("ann" + "0" * 29, "a:1"), Candidate("bob" + "0" * 29, "b:1")


def tip(epoch: int) -> Tip:
    return Tip(epoch, f"{epoch:064x}", 10 * epoch, ANN, "fp32")


def header(epoch: int) -> StateHeader:
    return StateHeader("ab" * 32, max(0, epoch), f"{abs(epoch):064x}", max(0, 10 * epoch), "", {})


class Replica:
    elements = 10

    def layout(self, epoch: int) -> None:
        """Of commits, which nobody here has."""

    def __init__(self, epoch: int | None) -> None:
        self.tip = tip(epoch) if epoch is not None else None

    def restore(self, snapshot: bytes) -> Tip:
        epoch = int(snapshot)
        if epoch < 0:
            raise BadMessageError("the snapshot does not fit")
        self.tip = tip(epoch)
        return self.tip


class Scene:
    """What the others answer, by try; the test's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, epoch: int | None = None) -> None:
        self.replica = Replica(epoch)
        self.there: list[tuple[Candidate, int]] = []
        self.fetches: list[tuple[list[str], Standing | None]] = []  # (donors asked, at least)
        self.give: Callable[[Any, Sequence[Candidate]], bytes] = lambda fetch, sources: b"0"
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.pauses: list[float] = []
        self.before_try: Callable[[int], None] = lambda number: None
        scene = self

        class Fetch:
            def __init__(self, channels: Any, max_bytes: int, progress: Any, failed: Callable[[str, RemoteError], None]) -> None:
                self.failed = failed
                self.download = type(
                    "Download", (), {"manifest": None, "bytes_done": 0, "verified_by": {}, "forget": lambda _: None}
                )()

            async def run(self, sources: Sequence[Candidate], *, best: Any, at_least: Standing | None) -> bytes:
                scene.fetches.append(([kept_state.peer for kept_state in sources], at_least))
                self.download.verified_by = {kept_state.peer: 1 for kept_state in sources}
                return scene.give(self, sources)

        tries = iter(range(1000))

        async def ask_all(channels: Any, peers: Any) -> list[Whereabouts]:
            scene.before_try(next(tries))
            return [
                Whereabouts(peer, Standing(epoch, f"{epoch:064x}", 10 * epoch), True, ANN, 0, "") for peer, epoch in scene.there
            ]

        async def sleep(seconds: float) -> None:
            scene.pauses.append(seconds)

        async def no_commits(*arguments: Any) -> Any:
            raise RefusedError("too far back", reason=Reason.OTHER_LINEAGE.value)
            yield

        monkeypatch.setattr(peer.catch_up.catch_up, "SnapshotFetch", Fetch)
        monkeypatch.setattr(peer.catch_up.catch_up, "ask_all", ask_all)
        monkeypatch.setattr(peer.catch_up.catch_up, "fetch_commits", no_commits)
        monkeypatch.setattr(peer.catch_up.catch_up, "read_header", lambda snapshot: header(int(snapshot)))
        monkeypatch.setattr(peer.catch_up.catch_up, "asyncio", SimpleNamespace(sleep=sleep))

        class JobQueue:
            async def run(self, act: Callable[[], Any]) -> Any:
                return act()

        anything: Any = type("Anything", (), {"forget": lambda _: None, "reachable": lambda _: [], "hidden": lambda _: []})()
        self.catch_up = CatchUp(
            anything,
            self.replica,
            JobQueue(),
            anything,
            anything,
            self.event,
            lambda done, total: None,  # type: ignore[arg-type]
        )

    def event(self, name: str, /, **fields: Any) -> None:
        self.events.append((name, fields))

    def named(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.events if event == name]

    def run(self) -> Tip:
        return asyncio.run(self.catch_up.run(Reason.JOINED, lambda signed, reached, averaged: None))


def test_a_newcomer_takes_a_snapshot_and_compares_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.there = [(ANN, 7), (BOB, 7)]
    scene.give = lambda fetch, sources: b"7"
    assert scene.run() == tip(7)
    assert scene.fetches == [([ANN.peer, BOB.peer], None)]
    assert [name for name, _ in scene.events] == ["catching_up", "fetched", "caught_up"]


def test_after_its_tries_it_gives_up_with_the_cause_and_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    with pytest.raises(UnreachableError) as nobody:
        scene.run()
    assert f"{TRIES} tries" in str(nobody.value) and "nobody who is further" in str(nobody.value)
    assert "coordinator" in nobody.value.remedy
    assert scene.pauses[:7] == [0.25, 0.5, 1, 2, 4, 8, 8] and len(scene.pauses) == TRIES

    scene = Scene(monkeypatch)
    scene.there = [(ANN, 7)]

    def cut(fetch: Any, sources: Any) -> bytes:
        raise UnreachableError("donor ann cannot be reached (unavailable)")

    scene.give = cut
    with pytest.raises(UnreachableError, match=r"after 20 tries; the last problem: donor ann cannot be reached"):
        scene.run()
    assert len(scene.fetches) == TRIES


def test_a_run_that_is_always_a_step_ahead_does_not_use_up_the_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)

    def move_on(number: int) -> None:
        scene.there = [(ANN, min(number + 1, 3 * TRIES))]

    scene.before_try = move_on
    scene.give = lambda fetch, sources: str(scene.there[0][1]).encode()
    assert scene.run() == tip(3 * TRIES)
    assert scene.pauses == []


def test_chunks_of_the_same_target_are_progress_and_a_new_target_alone_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.there = [(ANN, 7)]

    def one_more(fetch: Any, sources: Any) -> bytes:
        fetch.download.manifest = "the same"
        fetch.download.bytes_done += 1
        if fetch.download.bytes_done > 3 * TRIES:
            return b"7"
        raise UnreachableError("cut")

    scene.give = one_more
    assert scene.run() == tip(7)
    assert set(scene.pauses) == {0.25}, "the first, whose target was new"

    scene = Scene(monkeypatch)
    scene.there = [(ANN, 7)]

    def begun_anew(fetch: Any, sources: Any) -> bytes:
        fetch.download.manifest = str(len(scene.fetches))
        fetch.download.bytes_done = 100
        raise UnreachableError("cut")

    scene.give = begun_anew
    with pytest.raises(UnreachableError, match="20 tries"):
        scene.run()


def test_who_gave_a_state_that_does_not_fit_is_not_asked_again_while_others_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.there = [(ANN, 7)]

    def lie(fetch: Any, sources: Any) -> bytes:
        scene.there = [(ANN, 7), (BOB, 7)]
        return b"7" if sources == [BOB] else b"-1"

    scene.give = lie
    assert scene.run() == tip(7)
    assert [sources for sources, _ in scene.fetches] == [[ANN.peer], [BOB.peer]]
    assert [(fields["peer"], fields["reason"]) for fields in scene.named("donor_failed")] == [(ANN.peer, Reason.BAD_CHUNK.value)]


def test_a_peer_with_state_of_its_own_never_goes_back_to_a_lighter_one(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, epoch=6)
    scene.there = [(ANN, 7)]
    scene.give = lambda fetch, sources: b"7" if len(scene.fetches) > 1 else b"5"
    assert scene.run() == tip(7)
    assert [least for _, least in scene.fetches] == [tip(6).standing, tip(6).standing]
    assert "less far" in scene.named("donor_failed")[0]["problem"]


def test_a_heavier_lineage_whose_holders_do_not_answer_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, epoch=6)
    heard = Standing(9, "f" * 64, 90)
    assert scene.catch_up.worth(heard)
    assert scene.run() == tip(6)
    assert not scene.catch_up.worth(heard)
    assert scene.catch_up.worth(Standing(10, "e" * 64, 100))
    (left,) = scene.named("left_alone")
    assert left["reason"] == Reason.NO_HOLDER and left["samples"] == 90 and left["lineage"] == heard.lineage


def test_it_is_stranded_only_while_nobody_who_can_be_dialled_has_any_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then alone may it lead without state: client-mode peers bring theirs to a leader."""
    scene = Scene(monkeypatch)
    seen: list[bool] = []

    def before_try(number: int) -> None:
        seen.append(scene.catch_up.stranded)
        scene.there = [(ANN, 7)] if number >= 2 else []

    scene.before_try = before_try
    scene.give = lambda fetch, sources: b"7"
    assert scene.run() == tip(7)
    assert seen == [False, True, True, False]
    assert not scene.catch_up.stranded
