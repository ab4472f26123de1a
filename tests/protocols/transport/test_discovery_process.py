"""What a DHT node keeps and believes, with records of admitted peers and of outsiders that mean it harm."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import warnings
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from protocols.errors import BadMessageError
from protocols.identity import Authority, Credentials
from protocols.transport.announcements import MAX_AHEAD_S, MAX_RECORD_BYTES, Announcement, sign_announcement
from protocols.transport.discovery import MAX_RECORDS, sign_node
from tests import factories

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of hivemind's own making, while it is imported
    from protocols.transport import discovery_process
    from protocols.transport.discovery_process import AdmittedP2P, Announcements, AnnouncementValidator, Parent, read_dictionary

RUN = "ab" * 32
NOW = 1_800_000_000.0
FAR = NOW + 100 * 365 * 86400  # in 2126
NODE = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    # hivemind reads this one, which decides what has ended.
    monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", clock)
    return clock


@pytest.fixture
def ann(authority: Authority) -> Credentials:
    return factories.admitted(authority)


@pytest.fixture
def validator(authority: Authority, clock: Clock) -> AnnouncementValidator:
    return AnnouncementValidator(RUN, authority.pem, clock)


def announced(by: Credentials, number: int = 1, ends: float = NOW + 30, peer: str = "") -> bytes:
    announcement = Announcement(peer or by.peer_id, 1, "192.0.2.1:1", "ann", False, (), number, int(ends * 1000))
    return sign_announcement(announcement, by)


def key(name: str = f"{RUN}.peers") -> bytes:
    return bytes(discovery_process.DHTID.generate(name).to_bytes())


def record(subkey: Any, value: bytes, ends: float, name: str = f"{RUN}.peers") -> Any:
    return discovery_process.DHTRecord(key(name), msgpack.packb(subkey), msgpack.packb(value), ends)


def dictionary(items: Iterable[tuple[Any, Any, float]], claimed_end: float = NOW) -> bytes:
    """As hivemind writes one; `items`: (subkey, msgpack of the value, end)."""
    inner = msgpack.packb([1.0, claimed_end, [list(item) for item in items]])
    return bytes(msgpack.packb(msgpack.ExtType(0x50, inner)))


def test_a_peers_own_announcement_is_kept_until_it_ends(validator: AnnouncementValidator, ann: Credentials) -> None:
    assert validator.validate(record(ann.peer_id, announced(ann), NOW + 30))
    assert validator.validate(record(ann.peer_id, announced(ann), NOW + 10)), "shorter is allowed"


@pytest.mark.parametrize("ends", [FAR, NOW + 31, float("inf"), float("nan")])
def test_an_announcement_played_again_lives_no_longer_than_its_signer_said(
    validator: AnnouncementValidator, ann: Credentials, ends: float
) -> None:
    assert not validator.validate(record(ann.peer_id, announced(ann), ends))


def test_not_even_its_signer_gives_one_an_end_far_ahead(validator: AnnouncementValidator, ann: Credentials, clock: Clock) -> None:
    later = announced(ann, ends=NOW + MAX_AHEAD_S + 1)
    assert not validator.validate(record(ann.peer_id, later, NOW + MAX_AHEAD_S + 1))
    assert not validator.validate(record(ann.peer_id, announced(ann, ends=FAR), FAR))
    clock.now += 1
    assert validator.validate(record(ann.peer_id, later, NOW + MAX_AHEAD_S + 1)), "clocks differ; that one is near enough"


def test_no_other_key_and_no_other_subkey_is_written(validator: AnnouncementValidator, ann: Credentials) -> None:
    assert not validator.validate(record(ann.peer_id, announced(ann), NOW + 30, name="anything"))
    assert not validator.validate(record(ann.peer_id, announced(ann), NOW + 30, name=f"{'cd' * 32}.peers"))
    for subkey in ("cd" * 16, None, 1, b"", ann.peer_id.encode(), ann.peer_id.upper()):
        assert not validator.validate(record(subkey, announced(ann), NOW + 30)), subkey


def test_nobody_announces_for_another_or_without_the_runs_certificate(
    validator: AnnouncementValidator, authority: Authority, ann: Credentials, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bob = factories.admitted(authority)
    stranger = factories.admitted(Authority.load_or_create(tmp_path_factory.mktemp("other")))
    assert not validator.validate(record(ann.peer_id, announced(bob, peer=ann.peer_id), NOW + 30))
    assert not validator.validate(record(stranger.peer_id, announced(stranger), NOW + 30))


def test_what_a_barred_peer_announces_is_dropped_until_it_is_barred_no_more(
    validator: AnnouncementValidator, ann: Credentials
) -> None:
    of_ann = record(ann.peer_id, announced(ann), NOW + 30)
    assert validator.validate(of_ann)
    validator.barred = frozenset({ann.peer_id})
    assert not validator.validate(of_ann)
    validator.barred = frozenset()
    assert validator.validate(of_ann)


@pytest.mark.parametrize(
    "value", [b"", b"\xc1", bytes(900_000), msgpack.packb(b"x" * MAX_RECORD_BYTES), msgpack.packb({"a": []})]
)
def test_other_values_are_refused(validator: AnnouncementValidator, ann: Credentials, value: bytes) -> None:
    whole = dataclasses.replace(record(ann.peer_id, b"", NOW + 30), value=value)
    assert not validator.validate(whole)
    assert not validator.validate(dataclasses.replace(whole, subkey=value, value=msgpack.packb(announced(ann))))


def test_an_old_copy_neither_replaces_nor_ends_a_newer_announcement(ann: Credentials, clock: Clock) -> None:
    storage, where = Announcements(), discovery_process.DHTID.generate("k")
    assert storage.store_subkey(where, ann.peer_id, b"new", NOW + 30)
    assert not storage.store_subkey(where, ann.peer_id, b"old", NOW + 5)
    clock.now += 6
    assert storage.get(where).value.get(ann.peer_id).value == b"new"
    assert storage.store_subkey(where, ann.peer_id, b"newest", NOW + 40)


def test_a_node_keeps_a_bounded_number_of_announcements_and_those_that_it_has(clock: Clock) -> None:
    storage, where = Announcements(), discovery_process.DHTID.generate("k")
    kept = [storage.store_subkey(where, f"peer {number}", b"", NOW + 30 + number / 1e6) for number in range(MAX_RECORDS + 50)]
    assert kept == [True] * MAX_RECORDS + [False] * 50
    assert storage.store_subkey(where, "peer 0", b"again", NOW + 40), "a peer that is known renews its own"
    clock.now += 35
    assert storage.store_subkey(where, "another", b"", NOW + 60), "ended ones make room"


def test_extensions_within_extensions_are_not_followed() -> None:
    """hivemind's decoder would call itself for each."""
    nested = b"\xc0"
    for _ in range(20_000):
        nested = b"\xc9" + len(nested).to_bytes(4, "big") + b"\x40" + nested
    with pytest.raises(BadMessageError):
        read_dictionary(b"\xc9" + len(nested).to_bytes(4, "big") + b"\x50" + nested)


@pytest.mark.parametrize(
    "data", [b"", b"\xc0", msgpack.packb({}), msgpack.packb(msgpack.ExtType(0x50, b"")), b"\xdf\xff\xff\xff\xff"]
)
def test_what_is_no_dictionary_is_refused(data: bytes) -> None:
    with pytest.raises(BadMessageError):
        read_dictionary(data)


# -- at the door -----------------------------------------------------------------------------------------------------------------


class Connected:
    """libp2p, with every connection there already."""

    async def connect(self, peer: Any, ways: Any) -> None: ...


class Door(AdmittedP2P):
    def __init__(self) -> None:
        super().__init__()
        self._client = Connected()

    def __del__(self) -> None:
        """hivemind's would end a daemon, and there is none."""


class Line:
    """The handlers that a node registers, and what other nodes answer to it, in the place of libp2p."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.handlers: dict[str, Any] = {}
        self.answer: Any = None

        async def add(this: Any, name: str, handler: Any, input_type: Any, **options: Any) -> None:
            self.handlers[name] = handler

        async def call(this: Any, peer: Any, name: str, request: Any, output_type: Any) -> Any:
            return self.answer

        monkeypatch.setattr(discovery_process.P2P, "add_protobuf_handler", add)
        monkeypatch.setattr(discovery_process.P2P, "call_protobuf_handler", call)


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    return Line(monkeypatch)


def passport(node: str, by: Credentials) -> Any:
    certificate, signature = sign_node(node, by)
    return discovery_process.AccessToken(public_key=certificate, signature=signature)


@pytest.fixture
def door(validator: AnnouncementValidator, authority: Authority, ann: Credentials) -> AdmittedP2P:
    p2p = Door()
    p2p.admit(validator, authority.pem, passport(NODE, ann))
    return p2p


dht = discovery_process.dht_pb2
PEER = discovery_process.PeerID.from_base58(NODE)


def answered(door: AdmittedP2P, line: Line, request: Any) -> Any:
    """What the node says to a request; what its handler was given is in `request`."""

    async def handler(request: Any, context: Any) -> Any:
        return dht.FindResponse()

    async def work() -> Any:
        await door.add_protobuf_handler("rpc", handler, type(request))
        return await line.handlers["rpc"](request, SimpleNamespace(remote_id=PEER))

    return asyncio.run(work())


def found(door: AdmittedP2P, line: Line, by: Credentials, *results: Any, node: str = NODE) -> Any:
    line.answer = dht.FindResponse(results=results)
    line.answer.auth.service_access_token.CopyFrom(passport(node, by))
    return asyncio.run(door.call_protobuf_handler(PEER, "rpc", dht.FindRequest(keys=[key()]), dht.FindResponse))


def test_who_shows_no_certificate_of_the_run_gets_no_answer(
    door: AdmittedP2P, line: Line, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stranger = factories.admitted(Authority.load_or_create(tmp_path_factory.mktemp("other")))
    bob = factories.admitted(authority)
    assert not answered(door, line, dht.FindRequest(keys=[key()])).ByteSize()
    for shown in (passport(NODE, stranger), passport(NODE[:-1] + "M", bob)):  # of another run; copied from another node
        request = dht.FindRequest(keys=[key()])
        request.auth.client_access_token.CopyFrom(shown)
        assert not answered(door, line, request).ByteSize()
    request = dht.FindRequest(keys=[key()])
    request.auth.client_access_token.CopyFrom(passport(NODE, bob))
    assert answered(door, line, request).auth.service_access_token.public_key


def test_the_node_of_a_barred_peer_gets_no_answer_and_is_not_believed(
    door: AdmittedP2P, validator: AnnouncementValidator, line: Line, authority: Authority
) -> None:
    bob = factories.admitted(authority)
    request = dht.FindRequest(keys=[key()])
    request.auth.client_access_token.CopyFrom(passport(NODE, bob))
    assert answered(door, line, request).ByteSize()
    validator.barred = frozenset({bob.peer_id})
    assert not answered(door, line, request).ByteSize()
    with pytest.raises(BadMessageError, match="does not let"):
        found(door, line, bob, dht.FindResult(type=dht.NOT_FOUND))


def test_answers_of_a_stranger_are_not_believed(door: AdmittedP2P, line: Line, authority: Authority) -> None:
    bob = factories.admitted(authority)
    with pytest.raises(BadMessageError):
        found(door, line, bob, dht.FindResult(type=dht.NOT_FOUND), node=NODE[:-1] + "M")
    assert found(door, line, bob, dht.FindResult(type=dht.NOT_FOUND)).results


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: dht.FindRequest(keys=[key()] * 8000),
        lambda: dht.FindRequest(keys=[key()], peer=dht.NodeInfo(node_id=b"x" * 1000)),
        lambda: dht.StoreRequest(keys=[key()], subkeys=[b"", b""], values=[b"x"], expiration_time=[NOW], in_cache=[False]),
    ],
)
def test_requests_that_no_honest_node_makes_get_nothing_and_end_nothing(
    door: AdmittedP2P,
    line: Line,
    authority: Authority,
    request_of: Callable[[], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(100):
        request = request_of()
        request.auth.client_access_token.CopyFrom(passport(NODE, factories.admitted(authority)))
        assert not answered(door, line, request).ByteSize()
    assert len(capsys.readouterr().err.splitlines()) == 1, "nobody fills the disk with what is said about it"


def test_one_bad_record_does_not_hide_the_good_ones_of_the_same_node(
    door: AdmittedP2P, line: Line, authority: Authority, ann: Credentials
) -> None:
    bob = factories.admitted(authority)
    good = (ann.peer_id, msgpack.packb(announced(ann)), NOW + 30)
    bad = [
        (bob.peer_id, msgpack.packb(announced(bob)), FAR),
        ("x", b"x" * 900_000, NOW + 1),
        (1, 2, NOW),
        (bob.peer_id, b"", NOW),
    ]
    many = dictionary([*bad, good], claimed_end=float("inf"))
    request = dht.StoreRequest(keys=[key()], subkeys=[b""], values=[many], expiration_time=[FAR], in_cache=[False])
    request.auth.client_access_token.CopyFrom(passport(NODE, bob))
    answered(door, line, request)
    result = dht.FindResult(type=dht.FOUND_DICTIONARY, value=many, expiration_time=float("inf"))
    (sifted,) = found(door, line, bob, result).results
    assert read_dictionary(request.values[0]) == read_dictionary(sifted.value) == [good]
    assert sifted.expiration_time == NOW + 30, "an end that only a dictionary claims would end the search at once"


def test_an_empty_dictionary_that_never_ends_is_nothing_found(door: AdmittedP2P, line: Line, authority: Authority) -> None:
    result = dht.FindResult(type=dht.FOUND_DICTIONARY, value=dictionary([]), expiration_time=FAR)
    (sifted,) = found(door, line, factories.admitted(authority), result).results
    assert sifted.type == dht.NOT_FOUND


def test_neighbours_are_those_whose_announcement_was_read(door: AdmittedP2P, line: Line, authority: Authority) -> None:
    assert door.learn([f"/ip4/192.0.2.1/tcp/1/p2p/{NODE}"]) == [PEER]
    ids = [PEER.to_bytes(), bytes(34), b"2", bytes(1_000_000), *[PEER.to_bytes()] * 5000]
    crowd = dht.FindResult(type=dht.NOT_FOUND, nearest_node_ids=[b"1"] * len(ids), nearest_peer_ids=ids)
    (result,) = found(door, line, factories.admitted(authority), crowd).results
    assert set(result.nearest_peer_ids) == {PEER.to_bytes()}
    assert len(result.nearest_node_ids) == len(result.nearest_peer_ids) == discovery_process.MAX_NEIGHBOURS - 3


def test_few_ways_to_one_node_are_remembered_and_those_that_cannot_be_used_are_passed_over(door: AdmittedP2P) -> None:
    for port in range(1, 100):
        ways = [f"/ip4/192.0.2.1/tcp/{port}/p2p/{NODE}", f"/dns4/{'ü' * 63}/tcp/1/p2p/{NODE}", "nonsense"]
        assert door.learn(ways) == [PEER]
    assert len(door._ways[NODE]) == discovery_process.MAX_WAYS


def test_a_line_that_is_too_long_or_no_request_is_passed_over_and_the_next_is_heard() -> None:
    async def work() -> None:
        reader = asyncio.StreamReader(limit=1000)
        parent = Parent(reader)
        for line in (b"x" * 5000, b"no json", b"[1]", b"\xff\xfe"):
            reader.feed_data(line + b"\n")
            with pytest.raises(ValueError, match=r"."):
                await parent.hear()
        reader.feed_data(json.dumps({"do": "get"}).encode() + b"\n")
        assert await parent.hear() == {"do": "get"}
        reader.feed_eof()
        assert await parent.hear() is None

    asyncio.run(work())
