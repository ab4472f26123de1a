"""Invites: who may join, how often, how long; whom each admitted. Two programs share them."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from coordinator import organising
from coordinator.invites import OPEN, Admission, Invites
from protocols.ban_list import MAX_BANNED
from protocols.errors import TicketError, UsageError
from protocols.identity import Authority, Key, Ticket, requester

DAY_S = 86_400.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "identity").mkdir()
    return tmp_path


class Clock:
    now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def invites(folder: Path, clock: Clock) -> Iterator[Invites]:
    it = Invites(folder, clock)
    it.open_to_all(b"open secret 1234")
    yield it
    it.close()


def test_the_open_invite_admits_anybody_and_a_secret_of_nobody_admits_nobody(invites: Invites) -> None:
    assert [invites.admit(b"open secret 1234", f"peer {number}", "::1") for number in range(5)] == [OPEN] * 5
    with pytest.raises(TicketError, match="secret"):
        invites.admit(b"open secret 1235", "eve", "::1")


def test_each_admission_is_told_once_it_is_kept_and_a_refusal_is_not(folder: Path, clock: Clock) -> None:
    told: list[Admission] = []
    with contextlib.closing(Invites(folder, clock, told.append)) as invites:
        secret = invites.make("ann", 1, None)
        for peer in ("a", "a"):
            invites.admit(secret, peer, "192.0.2.7")
        with pytest.raises(TicketError):
            invites.admit(secret, "b", "192.0.2.8")
    assert told == [Admission("a", "ann", clock.now, "192.0.2.7")] * 2


def test_the_ban_list_gets_a_larger_version_with_each_change_and_when_a_ban_ends(invites: Invites, clock: Clock) -> None:
    lists = [invites.ban_list]
    for change in (
        lambda: invites.ban(["a", "b"]),
        lambda: invites.ban(["c"], lasts_s=60.0),
        lambda: invites.unban(["a"]),
        lambda: setattr(clock, "now", clock.now + 61),
    ):
        change()
        lists.append(invites.ban_list)
    assert [bans.peers for bans in lists] == [(), ("a", "b"), ("a", "b", "c"), ("b", "c"), ("b",)]
    assert all(later.version > earlier.version for earlier, later in itertools.pairwise(lists))
    assert invites.ban_list == lists[-1], "nothing changed"


def test_a_clock_that_was_put_back_makes_no_smaller_version(invites: Invites, clock: Clock) -> None:
    invites.ban(["a"])
    before = invites.ban_list.version
    clock.now -= 1000.0
    invites.ban(["b"])
    assert invites.ban_list.version == before + 1


def test_more_bans_than_a_list_holds_are_refused_and_change_nothing(invites: Invites) -> None:
    before = invites.ban_list
    with pytest.raises(UsageError, match="at most"):
        invites.ban([f"{number:032x}" for number in range(MAX_BANNED + 1)])
    assert invites.ban_list == before


def test_an_invite_is_used_up_by_other_peers_and_not_by_one_that_comes_again(invites: Invites) -> None:
    secret = invites.make("ann", 2, None)
    for peer in ("a", "a", "b", "a", "b"):
        assert invites.admit(secret, peer, "::1") == "ann"
    with pytest.raises(TicketError, match="used 2 times"):
        invites.admit(secret, "c", "::1")
    assert invites.admit(secret, "a", "::1") == "ann", "who was admitted may come again"
    (_, ann) = invites.invites
    assert (ann.name, ann.uses, ann.used) == ("ann", 2, 2)


def test_an_invite_ends(invites: Invites, clock: Clock) -> None:
    secret = invites.make("week", None, 7 * DAY_S)
    clock.now += 7 * DAY_S - 1
    assert invites.admit(secret, "a", "::1") == "week"
    clock.now += 1
    for peer in ("a", "b"):
        with pytest.raises(TicketError, match="expired"):
            invites.admit(secret, peer, "::1")
    with pytest.raises(TicketError, match="expired"):
        invites.check(secret)


def test_another_program_sees_what_this_one_did_at_once(invites: Invites, folder: Path) -> None:
    other = Invites(folder)
    secret = other.make("ann", 1, None)
    assert invites.admit(secret, "a", "10.0.0.1") == "ann"
    (admission,) = other.admissions
    assert (admission.peer, admission.invite, admission.address) == ("a", "ann", "10.0.0.1")
    other.close()


def test_two_programs_that_admit_at_once_do_not_exceed_the_uses(invites: Invites, folder: Path) -> None:
    secret, admitted = invites.make("ten", 10, None), list[str]()

    def admit(start: int) -> None:
        mine = Invites(folder)
        for number in range(start, start + 20):
            try:
                mine.admit(secret, f"peer {number}", "::1")
                admitted.append(f"peer {number}")
            except TicketError:
                pass
        mine.close()

    threads = [threading.Thread(target=admit, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 10


def test_an_invite_is_made_once_and_the_printed_ticket_can_be_limited(invites: Invites) -> None:
    invites.make("ann", None, None)
    with pytest.raises(UsageError, match="already"):
        invites.make("ann", None, None)
    invites.admit(b"open secret 1234", "a", "::1")
    invites.limit(OPEN, 1)
    with pytest.raises(TicketError, match="used 1 times"):
        invites.admit(b"open secret 1234", "b", "::1")
    with pytest.raises(UsageError, match="no invite named 'bob'"):
        invites.limit("bob", 3)


def test_a_certificate_names_the_invite_and_the_request_cannot(tmp_path: Path) -> None:
    authority, key = Authority.load_or_create(tmp_path), Key.generate()
    request = key.request()
    assert requester(request) == key.peer_id
    subject = x509.load_pem_x509_certificate(authority.admit(request, "ann")).subject
    assert [it.value for it in subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)] == ["ann"]


def test_a_ban_holds_for_its_time_or_until_it_is_taken_back(invites: Invites, clock: Clock) -> None:
    invites.ban(["a"], 600.0)
    invites.ban(["b", "c"])
    assert invites.banned == {"a", "b", "c"}
    clock.now += 600.0
    invites.unban(["c", "nobody"])
    assert invites.banned == {"b"}


def test_a_peer_is_named_by_the_beginning_of_its_id(invites: Invites) -> None:
    for peer in ("3fa2bb", "3fa9cc", "77aa00"):
        invites.admit(b"open secret 1234", peer, "::1")
    assert invites.named("3fa2") == "3fa2bb" and invites.named("7") == "77aa00"
    for start, problem in (("3fa", "2 peers"), ("9", "nobody"), ("%", "nobody")):
        with pytest.raises(UsageError, match=problem):
            invites.named(start)


# -- the organiser's commands ------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(folder: Path, invites: Invites) -> Path:
    ticket = Ticket(("example.org",), 29100, b"f" * 32, b"open secret 1234")
    (folder / "ticket.txt").write_text(f"{ticket}\n")
    return folder


def test_an_invite_is_a_line_to_paste_with_a_ticket_of_its_own(
    run_folder: Path, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    organising.invite(Path("run.toml"), run_folder, name="ann", uses=1, expires="7d")
    command, _, line = capsys.readouterr().out.strip().rpartition(" ")
    assert command == "dugnad peer"
    ticket = Ticket.parse(line)
    assert (ticket.hosts, ticket.port, ticket.fingerprint) == (("example.org",), 29100, b"f" * 32)
    assert invites.admit(ticket.secret, "a", "::1") == "ann"


def test_peers_are_listed_for_people_and_for_programs(
    run_folder: Path, clock: Clock, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    clock.now = time.time() - 100
    invites.admit(b"open secret 1234", "ab" * 16, "10.0.0.7")
    organising.show_peers(Path("run.toml"), run_folder, as_json=False)
    shown = capsys.readouterr().out
    assert "ab" * 16 in shown and "10.0.0.7" in shown and "any number" in shown
    organising.show_peers(Path("run.toml"), run_folder, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [(it["name"], it["used"]) for it in told["invites"]] == [(OPEN, 1)]
    assert [it["peer"] for it in told["admissions"]] == ["ab" * 16]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"name": "", "uses": None, "expires": None}, "no name"),
        ({"name": "a\x1b[2J", "uses": None, "expires": None}, "no name"),
        ({"name": "ann", "uses": None, "expires": "soon"}, "no duration"),
        ({"name": "ann", "uses": None, "expires": "0d"}, "no duration"),
        ({"name": OPEN, "uses": None, "expires": None}, "own ticket"),
    ],
)
def test_what_cannot_be_an_invite_is_refused(run_folder: Path, options: dict[str, str | int | None], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        organising.invite(Path("run.toml"), run_folder, **options)  # type: ignore[arg-type]


def test_without_a_run_the_commands_say_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no coordinator has run"):
        organising.show_peers(Path("run.toml"), tmp_path, as_json=False)


def test_all_of_an_invite_are_banned_but_the_auxiliary_peer_and_it_admits_nobody_more(
    run_folder: Path, clock: Clock, invites: Invites, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_folder / "auxiliary").mkdir()
    own = Key.load_or_create(run_folder / "auxiliary" / "identity.key").peer_id
    clock.now = time.time() + 1
    for peer in (own, "aa" * 16, "bb" * 16):
        invites.admit(b"open secret 1234", peer, "::1")
    organising.ban(Path("run.toml"), run_folder, peer=None, invite=OPEN, lasts_s=None)
    assert invites.banned == {"aa" * 16, "bb" * 16}
    with pytest.raises(TicketError, match="expired"):
        invites.admit(b"open secret 1234", "cc" * 16, "::1")
    organising.unban(Path("run.toml"), run_folder, peer="aa", invite=None)
    assert invites.banned == {"bb" * 16}
    organising.show_peers(Path("run.toml"), run_folder, as_json=False)
    assert "banned" in capsys.readouterr().out
    with pytest.raises(UsageError, match="auxiliary"):
        organising.ban(Path("run.toml"), run_folder, peer=own, invite=None, lasts_s=None)
    for peer, invite in ((None, None), ("aa", OPEN)):
        with pytest.raises(UsageError, match="either"):
            organising.unban(Path("run.toml"), run_folder, peer=peer, invite=invite)
