from __future__ import annotations

from protocols.reasons import Reason
from protocols.round.leader import DETECTION_S
from protocols.round.records import Candidate, Tip
from protocols.round.succession import Succession


def at(*names: str) -> tuple[Candidate, ...]:
    return tuple(Candidate(name, f"{name}:1") for name in names)


def tip(leader: str, *after: str, lineage: str = "a") -> Tip:
    return Tip(4, lineage * 64, 100, *at(leader), "fp32", succession=at(*after))


def succession(me: str, *, client_mode: bool = False, looked: bool = True) -> Succession:
    it = Succession(Candidate(me, "" if client_mode else f"{me}:1"))
    if looked:
        it.know([])
    return it


def test_nobody_is_followed_and_nobody_leads_before_it_has_looked_who_is_there() -> None:
    here = succession("bob", looked=False)
    here.follow(tip("mia", "bob"))
    here.silent("mia")
    assert here.acting is None
    here.know(at("zoe"))
    assert here.acting == Candidate("bob", "bob:1")


def test_the_commits_leader_is_followed_however_small_a_newcomers_id_is() -> None:
    here = succession("aaa")
    here.follow(tip("mia", "zoe", "bob"))
    here.know(at("abe", "bob"))
    assert here.acting == Candidate("mia", "mia:1")
    assert [candidate.peer for candidate in here.order] == ["mia", "zoe", "bob", "aaa", "abe"]


def test_the_next_in_order_takes_over_from_a_silent_leader() -> None:
    here = succession("bob")
    here.follow(tip("mia", "zoe", "bob"))
    for silent, expected in (("mia", "zoe"), ("zoe", "bob")):
        here.silent(silent)
        assert here.acting is not None
        assert here.acting.peer == expected


def test_a_leader_that_is_heard_again_is_followed_again() -> None:
    here = succession("bob")
    here.follow(tip("mia", "bob"))
    here.silent("mia")
    here.heard("mia")
    assert here.acting == Candidate("mia", "mia:1")


def test_a_new_tip_clears_suspicions_and_the_same_tip_does_not() -> None:
    here = succession("zoe")
    here.follow(tip("mia", "bob"))
    here.silent("mia")
    here.follow(tip("mia", "bob"))
    assert here.acting == Candidate("bob", "bob:1")
    here.follow(tip("mia", "bob", lineage="b"))
    assert here.acting == Candidate("mia", "mia:1")


def test_a_client_mode_peer_never_leads_even_if_a_commit_names_it() -> None:
    here = succession("bob", client_mode=True)
    here.follow(tip("mia", "bob", "zoe"))
    here.silent("mia")
    assert here.acting == Candidate("zoe", "zoe:1")
    assert "bob" not in [candidate.peer for candidate in here.order]


def test_a_peer_found_at_a_new_address_is_dialled_there() -> None:
    here = succession("bob")
    here.follow(tip("mia", "zoe"))
    here.know([Candidate("mia", "moved:9")])
    assert here.acting == Candidate("mia", "moved:9")


def test_when_everybody_is_silent_the_order_is_tried_from_the_top() -> None:
    here = succession("bob", client_mode=True)
    here.follow(tip("mia", "zoe"))
    here.silent("mia")
    here.silent("zoe")
    assert here.acting == Candidate("mia", "mia:1")


def test_without_a_tip_or_anybody_reachable_there_is_no_leader() -> None:
    here = succession("bob", client_mode=True)
    assert here.acting is None
    here.follow(Tip.genesis("ab" * 32, "00" * 32, Candidate("mia", ""), "fp32"))
    assert here.acting is None


def test_peers_of_one_lineage_agree_on_the_order_that_the_commit_names() -> None:
    orders = []
    for me in ("bob", "zoe", "new"):
        here = succession(me)
        here.follow(tip("mia", "zoe", "bob"))
        here.know(at("new") if me == "bob" else at("bob", "xxx"))
        orders.append([candidate.peer for candidate in here.order][:3])
    assert orders == [["mia", "zoe", "bob"]] * 3


def test_at_the_beginning_nobody_leads_before_the_first_leader_is_found() -> None:
    """The genesis names a leader without an address. If a peer missed it in discovery and led itself, it would begin a fork."""
    succession = Succession(Candidate("me", "me:1"))
    succession.follow(Tip.genesis("ab" * 32, "cd" * 32, Candidate("first", ""), "fp32"))
    succession.know([Candidate("bob", "bob:1")])
    assert succession.acting is None
    succession.know([Candidate("bob", "bob:1"), Candidate("first", "first:1")])
    assert succession.acting == Candidate("first", "first:1")


def test_a_successor_that_has_yet_to_find_the_leader_silent_is_waited_for_instead_of_dialling_that_leader_again() -> None:
    here = succession("bob")
    here.follow(tip("mia", "zoe", "bob"))
    here.passed_over("mia", 10.0, Reason.SILENT, follows="", able=False)
    here.passed_over("zoe", 10.1, Reason.NOT_THE_LEADER, follows="mia", able=False)
    assert here.acting == Candidate("zoe", "zoe:1")
    # zoe's time is up and it still follows mia, so mia counts as heard.
    here.passed_over("zoe", 10.0 + DETECTION_S, Reason.NOT_THE_LEADER, follows="mia", able=False)
    assert here.acting == Candidate("mia", "mia:1")


def test_a_leader_whose_connection_broke_is_dialled_again_when_the_next_in_order_follows_it() -> None:
    here = succession("bob")
    here.follow(tip("mia", "zoe", "bob"))
    here.passed_over("mia", 10.0, Reason.CONNECTION_LOST, follows="", able=False)
    here.passed_over("zoe", 10.1, Reason.NOT_THE_LEADER, follows="mia", able=False)
    assert here.acting == Candidate("mia", "mia:1")
