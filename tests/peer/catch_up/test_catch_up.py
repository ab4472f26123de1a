"""Which ways a peer takes to the heaviest lineage, when it goes on, and when it gives up. Replica, state and calls are real, in
virtual time; the donors do what each test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from peer.catch_up.catch_up import TRIES, TRIES_WITH_STATE, CatchUp
from peer.catch_up.claims import Claims
from peer.catch_up.kept_state import KeptState
from peer.simulation.liars import other_weights
from protocols.errors import UnreachableError
from protocols.messages import NOBODY, AskReply, AskRequest, Chunk, CommitsRequest, ObserveRequest, OfferRequest, SnapshotRequest
from protocols.observations import Committed, Swarm
from protocols.reasons import Reason
from protocols.round.records import Candidate, SignedCommit, Standing, Tip
from protocols.snapshot.format import manifest_of, read_header
from protocols.transport.interface import Stream, refusal
from tests.peer.histories import LEADER, History, Stand
from tests.peer.virtual import JobsAtOnce, Net

CHUNK = 1 << 10
PAUSES_S = 0.25 + 0.5 + 1 + 2 + 4 + 15 * 8  # between the tries that are made before it gives up


@pytest.fixture(scope="module")
def history() -> History:
    return History(3 * TRIES)


class Donor:
    """A peer at `epoch` of a history. It keeps no commits unless `keeps`."""

    def __init__(self, net: Net, name: str, history: History, epoch: int, *, keeps: bool = False) -> None:
        self.history, self.epoch, self.keeps = history, epoch, keeps
        self.candidate = net.node(name, self).candidate
        self.asked: list[Any] = []
        self.when_asked: Callable[[Any], None] = lambda opening: None
        self.sends: Callable[[], bytes] = lambda: self.history.snapshots[self.epoch]
        self.offers_after_s = self.chunks_after_s = 0.0
        self.records: list[SignedCommit] | None = None
        self.chunks_a_call = 10**6  # then it breaks the link off
        self.damage: Callable[[SignedCommit], SignedCommit] = lambda signed: signed

    def asked_for(self, kind: type[Any]) -> list[Any]:
        return [opening for opening in self.asked if isinstance(opening, kind)]

    async def serve(self, stream: Stream, opening: Any) -> None:
        self.asked.append(opening)
        self.when_asked(opening)
        match opening:
            case AskRequest():
                await stream.send(AskReply(self.history.tips[self.epoch].standing, True, NOBODY, ""))
            case OfferRequest():
                await asyncio.sleep(self.offers_after_s)
                snapshot = self.sends()
                await stream.send(manifest_of(snapshot, read_header(snapshot), CHUNK))
            case SnapshotRequest(_, first, count):
                await asyncio.sleep(self.chunks_after_s)
                snapshot = self.sends()
                for index in range(first, first + min(count, self.chunks_a_call)):
                    await stream.send(Chunk(index * CHUNK, snapshot[index * CHUNK : (index + 1) * CHUNK]))
                if count > self.chunks_a_call:
                    raise UnreachableError("cut")
            case ObserveRequest():
                if self.records is None:
                    raise refusal(Reason.BUSY, "it tells no commits")
                for view in range(2):
                    await stream.send(Swarm(self.history.tips[self.epoch].standing, 0, "training", (), None))
                    for signed in self.records if view == 0 else ():
                        await stream.send(Committed(signed))
            case CommitsRequest(after):
                found = self.history.after(after, self.epoch) if self.keeps else None
                if found is None:
                    raise refusal(Reason.OTHER_LINEAGE, "too far back")
                for signed, result in found:
                    await stream.send(self.damage(signed))
                    await stream.send(Chunk(0, result))

    async def serve_bulk(self, *_: Any) -> None:
        raise AssertionError("state does not come over bulk connections")


class Joiner:
    """A peer that searches. `others` are those that it can dial, `hidden` the client-mode followers that say where they stand."""

    def __init__(self, net: Net, *others: Donor, stand: Stand | None = None) -> None:
        self.node, self.stand = net.node("joiner", reachable=False), stand or Stand("joiner")
        self.others = [donor.candidate for donor in others]
        self.hidden_ones: dict[str, tuple[Standing, bytes]] = {}
        self.replica, self.jobs = self.stand.replica, JobsAtOnce()
        me: Any = self
        environment = self.node.environment()
        self.kept_state = KeptState(me, environment)
        claims = Claims(environment, self.stand.replica.settings.genesis, me, lambda: self.replica.tip, lambda: ())
        self.claims = claims
        self.catch_up = CatchUp(environment, me, self.kept_state, me, claims, lambda: "", self.node.told)
        self.replayed: list[int] = []
        self.restored: list[int] = []

    def reachable(self) -> list[Candidate]:
        return list(self.others)

    def candidate(self, peer: str) -> Candidate | None:
        return next((candidate for candidate in self.others if candidate.peer == peer), None)

    def followers(self) -> list[tuple[str, Standing]]:
        return self.hidden()

    def hidden(self) -> list[tuple[str, Standing]]:
        return [(peer, standing) for peer, (standing, _) in self.hidden_ones.items()]

    async def pushed_by(self, peer: str) -> bytes:
        return self.hidden_ones[peer][1]

    def run(self, reason: Reason = Reason.JOINED, sound: tuple[str, ...] = ()) -> Tip:
        return self.node.play(self.search(reason, sound))

    async def search(self, reason: Reason = Reason.JOINED, sound: tuple[str, ...] = ()) -> Tip:
        return await self.catch_up.run(
            reason,
            lambda signed, tip, result: self.replayed.append(tip.epoch),
            lambda tip: self.restored.append(tip.epoch),
            sound,
        )


# -- from a snapshot --------------------------------------------------------------------------------------------------------


def test_a_newcomer_takes_a_snapshot_from_all_who_have_it_and_compares_again(net: Net, history: History) -> None:
    donors = [Donor(net, name, history, 7) for name in ("ann", "bob")]
    joiner = Joiner(net, *donors)
    assert joiner.run() == history.tips[7]
    assert joiner.stand.weights == history.weights[7]
    assert [name for name, _ in joiner.node.events] == ["catching_up", "fetched", "caught_up"]
    assert set(joiner.node.told_of("fetched")[0]["chunks"]) == {"ann", "bob"}
    assert all(len(donor.asked_for(AskRequest)) == 2 for donor in donors), "somebody may be further by now"


def test_after_its_tries_it_gives_up_with_the_cause_and_a_remedy(net: Net) -> None:
    joiner = Joiner(net)
    with pytest.raises(UnreachableError) as nobody:
        joiner.run()
    assert f"{TRIES} tries" in str(nobody.value) and "nobody who is further" in str(nobody.value)
    assert "coordinator" in nobody.value.remedy
    assert net.world.now == pytest.approx(PAUSES_S), "each pause is twice as long as the one before, up to a longest"


def test_the_cause_that_it_names_is_the_last_problem(net: Net, history: History) -> None:
    ann = Donor(net, "ann", history, 7)
    ann.chunks_a_call = 0
    with pytest.raises(UnreachableError, match=r"after 20 tries; the last problem: the link to ann broke"):
        Joiner(net, ann).run()
    assert len(ann.asked_for(OfferRequest)) == TRIES


def test_a_run_that_is_always_a_step_ahead_does_not_use_up_the_tries(net: Net, history: History) -> None:
    ann = Donor(net, "ann", history, 0)

    def move_on(opening: Any) -> None:
        if isinstance(opening, AskRequest):
            ann.epoch = min(ann.epoch + 1, 3 * TRIES)

    ann.when_asked = move_on
    assert Joiner(net, ann).run() == history.tips[-1]
    assert len(ann.asked_for(OfferRequest)) == 3 * TRIES


def test_chunks_of_the_same_target_are_progress(net: Net, history: History) -> None:
    ann = Donor(net, "ann", history, 7)
    ann.chunks_a_call = 1
    joiner = Joiner(net, ann)
    assert joiner.run() == history.tips[7]
    assert len(ann.asked_for(OfferRequest)) > 2 * TRIES, "more tries than it would make in vain"


def test_a_new_target_alone_is_no_progress(net: Net, history: History) -> None:
    ann = Donor(net, "ann", history, 50)
    ann.chunks_a_call = 1
    ann.sends = lambda: history.snapshots[len(ann.asked_for(OfferRequest))]  # another one each time
    with pytest.raises(UnreachableError, match="20 tries"):
        Joiner(net, ann).run()


def test_who_gave_a_state_that_does_not_fit_is_not_asked_again_while_others_are_there(net: Net, history: History) -> None:
    ann, bob = Donor(net, "ann", history, 7), Donor(net, "bob", history, 7)
    ann.sends = lambda: foreign(history.snapshots[7])
    joiner = Joiner(net, ann)

    def bob_comes(opening: Any) -> None:
        if isinstance(opening, SnapshotRequest):
            joiner.others = [ann.candidate, bob.candidate]

    ann.when_asked = bob_comes
    assert joiner.run() == history.tips[7]
    assert (len(ann.asked_for(OfferRequest)), bool(bob.asked_for(OfferRequest))) == (1, True)
    assert [(it["peer"], it["reason"]) for it in joiner.node.told_of("donor_failed")] == [("ann", Reason.BAD_CHUNK.value)]


def foreign(snapshot: bytes) -> bytes:
    """The same state of a run with another digest."""
    return snapshot.replace(b"ab" * 32, b"cd" * 32)


def test_with_nobody_else_there_it_is_asked_again(net: Net, history: History) -> None:
    ann = Donor(net, "ann", history, 7)
    ann.sends = lambda: history.snapshots[7] if len(ann.asked_for(OfferRequest)) > 1 else foreign(history.snapshots[7])
    assert Joiner(net, ann).run() == history.tips[7]


def test_a_peer_with_state_of_its_own_never_goes_back_to_a_lighter_one(net: Net, history: History) -> None:
    ann = Donor(net, "ann", history, 7)
    ann.sends = lambda: history.snapshots[7 if len(ann.asked_for(OfferRequest)) > 1 else 5]
    joiner = Joiner(net, ann, stand=history.stand("joiner", 6))
    assert joiner.run() == history.tips[7]
    assert [request.at_least for request in ann.asked_for(OfferRequest)] == [history.tips[6].standing] * 2
    assert "less far" in joiner.node.told_of("donor_failed")[0]["problem"]


def test_a_client_mode_peer_that_is_further_is_asked_to_push_when_nobody_else_gives(net: Net, history: History) -> None:
    joiner = Joiner(net, Donor(net, "ann", history, 3), stand=history.stand("joiner", 3))
    joiner.hidden_ones = {"hid": (history.tips[9].standing, history.snapshots[9])}
    assert joiner.run() == history.tips[9]


def test_a_peer_whose_state_was_off_takes_one_from_those_that_are_sound_though_others_are_nearer(
    net: Net, history: History
) -> None:
    cid, bob = Donor(net, "cid", history, 7), Donor(net, "bob", history, 7)
    joiner = Joiner(net, cid, bob, stand=history.stand("joiner", 7))
    assert joiner.run(Reason.DRIFT, sound=("bob",)) == history.tips[7]
    assert (len(cid.asked_for(OfferRequest)), bool(bob.asked_for(OfferRequest))) == (0, True)

    joiner = Joiner(net, cid, stand=history.stand("joiner", 7))
    joiner.hidden_ones = {"hid": (history.tips[7].standing, history.snapshots[7])}
    assert joiner.run(Reason.DRIFT, sound=("hid",)) == history.tips[7]
    assert cid.asked_for(OfferRequest) == []


def test_the_organisers_own_peer_has_a_word_in_which_states_are_sound(net: Net, history: History) -> None:
    """A leader may name its like as those whose states are sound."""
    ann, bob = Donor(net, LEADER.peer, history, 7), Donor(net, "bob", history, 7)
    bob.sends = lambda: other_weights(history.snapshots[7])
    joiner = Joiner(net, ann, bob, stand=history.stand("joiner", 7))
    assert joiner.run(Reason.DRIFT, sound=("bob",)) == history.tips[7]
    assert joiner.stand.weights == history.weights[7]


def test_when_none_that_is_sound_can_give_its_state_the_others_are_asked(net: Net, history: History) -> None:
    ann = Donor(net, "ann", history, 7)
    assert Joiner(net, ann, stand=history.stand("joiner", 7)).run(Reason.DRIFT, sound=("away",)) == history.tips[7]


# -- by replay --------------------------------------------------------------------------------------------------------------


def test_a_peer_that_is_a_few_commits_behind_replays_them_to_the_same_bits(net: Net, history: History) -> None:
    ann = Donor(net, "ann", history, 8, keeps=True)
    joiner = Joiner(net, ann, stand=history.stand("joiner", 5))
    assert joiner.run() == history.tips[8]
    assert joiner.replayed == [6, 7, 8]
    assert joiner.stand.weights == history.weights[8]
    assert ann.asked_for(OfferRequest) == []


def test_a_device_that_fails_in_a_replay_costs_the_state_and_a_snapshot_is_taken(
    net: Net, history: History, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a step is no state of any lineage. The process goes on."""
    ann = Donor(net, "ann", history, 8, keeps=True)
    joiner = Joiner(net, ann, stand=history.stand("joiner", 5))
    joiner.stand.device.fails_next_step = True
    assert joiner.run() == history.tips[8]
    assert joiner.replayed == [] and joiner.stand.weights == history.weights[8]
    assert len(ann.asked_for(OfferRequest)) == 1
    assert "a simulated device failed" in caplog.text


def test_a_device_that_fails_before_it_writes_costs_the_state_too(net: Net, history: History) -> None:
    """Nobody can know what it has written."""
    ann = Donor(net, "ann", history, 8, keeps=True)
    joiner = Joiner(net, ann, stand=history.stand("joiner", 5))
    joiner.replica.apply = fails  # type: ignore[method-assign]
    assert joiner.run() == history.tips[8]
    assert joiner.stand.weights == history.weights[8]
    assert [request.at_least for request in ann.asked_for(OfferRequest)] == [None], "it has no state that counts"


def fails(signed: SignedCommit, result: bytes) -> Tip:
    raise RuntimeError("out of memory")


def test_a_state_that_has_drifted_is_noticed_in_a_replay_and_replaced(net: Net, history: History) -> None:
    ann = Donor(net, "ann", history, 8, keeps=True)
    joiner = Joiner(net, ann, stand=history.stand("joiner", 5))
    with torch.no_grad():
        joiner.stand.device.model.weights += 0.5
    assert joiner.run() == history.tips[8]
    assert joiner.replayed == [] and joiner.stand.weights == history.weights[8]


def test_a_commit_that_is_not_its_leaders_is_not_applied_and_another_donor_is_asked(net: Net, history: History) -> None:
    liar, bob = (Donor(net, name, history, 8, keeps=True) for name in ("liar", "bob"))
    liar.damage = lambda signed: replace(signed, signature=b"forged")
    bob.epoch = 7  # so that the liar is asked first
    joiner = Joiner(net, liar, bob, stand=history.stand("joiner", 5))

    def bob_moves_on(opening: Any) -> None:
        if isinstance(opening, CommitsRequest):
            bob.epoch = 8

    liar.when_asked = bob_moves_on
    assert joiner.run() == history.tips[8]
    assert joiner.replayed == [6, 7, 8]
    assert [it["peer"] for it in joiner.node.told_of("donor_failed")] == ["liar"]


def test_a_peer_whose_own_state_is_off_takes_one_even_from_peers_that_are_no_further(net: Net, history: History) -> None:
    ann = Donor(net, "ann", history, 6, keeps=True)
    joiner = Joiner(net, ann, stand=history.stand("joiner", 6))
    with torch.no_grad():
        joiner.stand.device.model.weights += 0.5
    assert joiner.run(Reason.DRIFT) == history.tips[6]
    assert joiner.stand.weights == history.weights[6]


def test_a_snapshot_from_before_a_commit_that_shows_drift_is_not_taken_again(net: Net, history: History) -> None:
    """The state that the donor kept is not the one that its commits continue. Only one from after them helps."""
    ann, off = Donor(net, "ann", history, 8, keeps=True), history.stand("off", 5)
    with torch.no_grad():
        off.device.model.weights += 0.5
    kept, _, _ = off.replica.capture()

    def kept_or_newer(request: Any) -> None:
        if isinstance(request, OfferRequest):
            ann.sends = lambda: history.snapshots[8] if request.at_least is not None else kept

    ann.when_asked = kept_or_newer
    joiner = Joiner(net, ann)
    assert joiner.run() == history.tips[8]
    assert [request.at_least for request in ann.asked_for(OfferRequest)] == [None, history.tips[5].standing]
    assert all(request.strictly for request in ann.asked_for(OfferRequest))
    assert joiner.restored == [5, 8]


# -- whether to search at all -----------------------------------------------------------------------------------------------


def test_a_heavier_lineage_whose_holders_do_not_answer_is_left_alone_for_a_while(net: Net, history: History) -> None:
    joiner = Joiner(net, stand=history.stand("joiner", 6))
    heard = Standing(9, "f" * 64, 90)
    assert joiner.catch_up.worth(heard, "eve")
    assert joiner.run() == history.tips[6]
    assert not joiner.catch_up.worth(heard, "eve")
    assert joiner.catch_up.worth(Standing(10, "e" * 64, 100), "eve")
    (left,) = joiner.node.told_of("left_alone")
    assert left["reason"] == Reason.NO_HOLDER and left["samples"] == 90 and left["lineage"] == heard.lineage
    net.world.run_until(net.world.now + left["seconds"] + 1)
    assert joiner.catch_up.worth(heard, "eve"), "it may be there by then"


def test_it_is_stranded_only_while_nobody_who_can_be_dialled_has_any_state(net: Net, history: History) -> None:
    """Then alone may it lead without state: client-mode peers bring theirs to a leader."""
    joiner = Joiner(net)
    assert not joiner.catch_up.stranded
    searching = joiner.node.start(joiner.search())
    net.world.run_until(2.0)
    assert joiner.catch_up.stranded
    joiner.others = [Donor(net, "ann", history, 7).candidate]
    net.world.run_until(60.0, searching.done)
    assert searching.result() == history.tips[7] and not joiner.catch_up.stranded


# -- when nobody else has any ------------------------------------------------------------------------------------------------


def test_a_state_that_was_called_damaged_is_taken_back_when_nobody_has_another(net: Net, history: History) -> None:
    joiner = Joiner(net, stand=history.stand("joiner", 6))
    began = net.world.now
    assert joiner.run(Reason.DRIFT) == history.tips[6]
    assert joiner.stand.weights == history.weights[6]
    assert net.world.now - began > 20, "the others had their time"
    assert [name for name, _ in joiner.node.events] == ["catching_up", "reinstated", "caught_up"]


def test_while_somebody_has_a_state_that_one_is_taken(net: Net, history: History) -> None:
    joiner = Joiner(net, Donor(net, "ann", history, 5), stand=history.stand("joiner", 6))
    assert joiner.run(Reason.DRIFT) == history.tips[5]
    assert not joiner.node.told_of("reinstated")


def test_a_heavier_lineage_that_nobody_shows_is_given_up_and_its_claimant_rests(net: Net, history: History) -> None:
    ann = Donor(net, "ann", history, 9)
    ann.sends = lambda: b"no snapshot"
    joiner = Joiner(net, ann, stand=history.stand("joiner", 6))
    assert joiner.run(Reason.BEHIND) == history.tips[6]
    asked = len(ann.asked_for(OfferRequest))
    assert asked == TRIES_WITH_STATE
    claimed = Standing(99, "e" * 64, 990)
    assert not joiner.catch_up.worth(claimed, "ann") and joiner.catch_up.worth(claimed, "bob")
    assert joiner.run(Reason.BEHIND) == history.tips[6], "nor is it asked for state meanwhile"
    assert len(ann.asked_for(OfferRequest)) == asked
