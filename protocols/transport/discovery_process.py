"""The child process around one hivemind DHT node (see discovery.py for why, and for the keys). The only file that imports
hivemind.

Whatever comes from other nodes passes `AdmittedP2P`: it answers and believes only nodes with a certificate of the run, and sifts
the announcements out of what they send.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgpack  # type: ignore[import-untyped]
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.p2p import P2P, PeerID
from hivemind.proto import dht_pb2
from hivemind.proto.auth_pb2 import AccessToken
from hivemind.utils import MSGPackSerializer
from hivemind.utils.multiaddr import Multiaddr

from protocols.errors import BadMessageError, LocalError, UnreachableError
from protocols.identity import verify_signature
from protocols.transport.announcements import MAX_AHEAD_S, MAX_RECORD_BYTES, Announcement, read_announcement
from protocols.transport.discovery import CLOCK_IS_OFF, MAX_LINE_BYTES, MAX_RECORDS, NODE, START_S, DiscoveryConfig

CONNECT_S = 10.0  # for one of the initial peers
OTHERS_S = 2.0  # for the rest of them once one has answered
FIND_S = 8.0  # for a look-up or a store: what others have said by then is the answer
MAX_KEYS = 1  # of one request: the run has one
MAX_NEIGHBOURS = 20  # that a node may name per key: hivemind's bucket
ID_BYTES = 34  # of a libp2p id: a digest and its kind
MAX_WAYS = 16  # addresses that are tried for one node
MAX_MET, MEET_S = 8, 1.0  # nodes that a look-up greets for the first time
COMPLAIN_S = 10.0  # between two lines about refused requests
MAX_ERROR = 1000  # characters
KEPT_CHECKS = 2 * MAX_RECORDS  # signatures that need not be checked again
_OVERHEAD_BYTES = 8  # of a value as msgpack writes it


class AnnouncementValidator(RecordValidatorBase):  # type: ignore[misc]  # hivemind is untyped
    """Accepts announcements of this run alone: under its key, with the signer's id as the subkey, at most MAX_RECORD_BYTES, and
    with an end that the signer named and that lies at most MAX_AHEAD_S ahead. Those of `barred` peers are refused."""

    barred: frozenset[str] = frozenset()

    def __init__(self, run_digest: str, authority: bytes, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since 1970."""
        self._key = DHTID.generate(key_of(run_digest)).to_bytes()
        self._clock = clock

        @functools.lru_cache(maxsize=KEPT_CHECKS)
        def read(data: bytes) -> Announcement:
            return read_announcement(data, authority)

        self.read = read

    def validate(self, record: DHTRecord) -> bool:
        if record.key != self._key or len(record.value) > MAX_RECORD_BYTES + _OVERHEAD_BYTES:
            return False
        if not record.expiration_time <= self._clock() + MAX_AHEAD_S:  # false for a NaN
            return False
        try:
            value, subkey = msgpack.unpackb(record.value), msgpack.unpackb(record.subkey)
            announcement = self.read(value)
        except Exception:  # noqa: BLE001  besides BadMessageError whatever msgpack raises, and TypeError for what is not bytes
            return False
        if announcement.peer in self.barred:
            return False
        return bool(announcement.peer == subkey and record.expiration_time <= announcement.expires)


class Announcements(DHTLocalStorage):  # type: ignore[misc]
    """At most MAX_RECORDS announcements; of two by one peer, the one that ends later."""

    def store_subkey(self, key: Any, subkey: Any, value: bytes, expiration_time: float) -> bool:
        held = self.get(key)
        if held is not None and isinstance(held.value, DictionaryDHTValue):
            before = held.value.get(subkey)
            # hivemind would let the earlier end of a second copy evict the announcement that it has.
            if before.expiration_time >= expiration_time if before is not None else len(held.value) >= MAX_RECORDS:
                return False
        return bool(super().store_subkey(key, subkey, value, expiration_time))


class AdmittedP2P(P2P):  # type: ignore[misc]
    """libp2p for nodes of this run alone: their requests and answers bring what `sign_node` made for their libp2p id."""

    def admit(self, validator: AnnouncementValidator, authority: bytes, passport: AccessToken) -> None:
        """Called before any handler is there. `passport`: this node's own."""
        self._validator = validator
        self._passport = passport
        self._complained_at = float("-inf")
        self._ways: dict[str, dict[Multiaddr, None]] = {}  # libp2p id -> where that node is said to be

        @functools.lru_cache(maxsize=KEPT_CHECKS)
        def check(node: str, certificate: bytes, signature: bytes) -> str:
            return verify_signature(NODE + node.encode(), signature, certificate, authority)

        self._check = check

    def learn(self, addresses: Iterable[str]) -> list[PeerID]:
        """Remember where nodes are. Gives the ids of those nodes. libp2p's own directory would tell outsiders, too, so that it
        is not used."""
        nodes: dict[str, None] = {}
        for address in addresses:
            way, _, node = address.rpartition("/p2p/")
            known = self._ways.get(node, {})
            if not known and len(self._ways) >= MAX_RECORDS:
                continue
            try:
                known.pop(Multiaddr(way), None)
                known[Multiaddr(way)] = None
            except Exception as error:  # noqa: BLE001  its parsers raise a dozen kinds
                log(f"{address} is passed over: {error}")
                continue
            self._ways[node] = dict(list(known.items())[-MAX_WAYS:])
            nodes[node] = None
        return [PeerID.from_base58(node) for node in nodes]

    async def dial(self, node: PeerID) -> None:
        """At once if there is a connection. Raises hivemind's ControlFailure."""
        if ways := self._ways.get(node.to_base58()):
            await self._client.connect(node, list(ways))

    async def add_protobuf_handler(self, name: str, handler: Any, input_type: Any, **options: Any) -> None:
        async def guarded(request: Any, context: Any) -> Any:
            try:
                self._check_request(request, context.remote_id)
                response = await handler(request, context)
            except Exception as error:  # noqa: BLE001  a message must not end this process, and hivemind would log each at length
                self._refused(context.remote_id, error)
                return dht_pb2.PingResponse()  # nothing: no bytes, which are no answer to any request
            response.auth.service_access_token.CopyFrom(self._passport)
            return response

        await super().add_protobuf_handler(name, guarded, input_type, **options)

    async def call_protobuf_handler(self, peer_id: PeerID, name: str, input: Any, output_protobuf_type: Any) -> Any:
        await self.dial(peer_id)
        input.auth.client_access_token.CopyFrom(self._passport)
        response = await super().call_protobuf_handler(peer_id, name, input, output_protobuf_type)
        self._admitted(peer_id, response.auth.service_access_token)
        if isinstance(response, dht_pb2.FindResponse):
            for key, result in zip(input.keys, response.results, strict=True):
                self._sift_found(key, result)
        return response

    def _check_request(self, request: Any, node: PeerID) -> None:
        """Raises BadMessageError; what is stored is sifted."""
        self._admitted(node, request.auth.client_access_token)
        if len(getattr(request, "keys", ())) > MAX_KEYS or len(request.peer.node_id) > DHTID.HASH_NBYTES:
            raise BadMessageError("too many keys, or too long an id")
        if isinstance(request, dht_pb2.StoreRequest):
            self._sift_store(request)

    def _refused(self, node: PeerID, error: Exception) -> None:
        """One line now and then, so that nobody fills the disk."""
        if time.monotonic() - self._complained_at >= COMPLAIN_S:
            self._complained_at = time.monotonic()
            log(f"refused {node.to_base58()}: {type(error).__name__}: {error}")

    def _admitted(self, node: PeerID, shown: AccessToken) -> None:
        """Raises BadMessageError for a node without a certificate of the run, or of a barred peer."""
        if len(shown.public_key) + len(shown.signature) > MAX_RECORD_BYTES:
            raise BadMessageError("too long a certificate")
        if self._check(node.to_base58(), shown.public_key, shown.signature) in self._validator.barred:
            raise BadMessageError("the organiser does not let this peer take part now")

    def _sift_store(self, request: Any) -> None:
        for at, tag in enumerate(request.subkeys):
            if tag == b"":  # hivemind's mark of a whole dictionary
                request.values[at] = MSGPackSerializer.dumps(self._sifted(request.keys[at], request.values[at]))

    def _sift_found(self, key: bytes, result: Any) -> None:
        """hivemind would drop an honest node's whole dictionary for one bad record, and believe the end that it claims."""
        near = list(zip(result.nearest_node_ids, result.nearest_peer_ids, strict=True))[:MAX_NEIGHBOURS]
        near = [(node_id, peer_id) for node_id, peer_id in near if self._is_known(peer_id)]  # made-up ones cost time
        del result.nearest_node_ids[:], result.nearest_peer_ids[:]
        result.nearest_node_ids.extend(node_id for node_id, _ in near)
        result.nearest_peer_ids.extend(peer_id for _, peer_id in near)
        if result.type == dht_pb2.FOUND_DICTIONARY:
            sifted = self._sifted(key, result.value)
            result.value, result.expiration_time = MSGPackSerializer.dumps(sifted), sifted.latest_expiration_time
            if not sifted:
                result.type = dht_pb2.NOT_FOUND

    def _is_known(self, peer_id: bytes) -> bool:
        return len(peer_id) == ID_BYTES and PeerID(peer_id).to_base58() in self._ways

    def _sifted(self, key: bytes, dictionary: bytes) -> DictionaryDHTValue:
        sifted = DictionaryDHTValue()
        for subkey, value, end in read_dictionary(dictionary):
            if self._validator.validate(DHTRecord(key, MSGPackSerializer.dumps(subkey), value, end)):
                sifted.store(subkey, value, end)
        return sifted


def read_dictionary(data: bytes) -> list[tuple[str, bytes, float]]:
    """(subkey, value, end) of at most MAX_RECORDS items of hivemind's dictionary. Raises BadMessageError.

    hivemind's own decoder follows extensions within extensions until the C stack is full.
    """
    try:
        outer = msgpack.unpackb(data)
        _, _, items = msgpack.unpackb(outer.data)
        found = [(subkey, value, float(end)) for subkey, value, end in items[:MAX_RECORDS]]
    except Exception as error:  # msgpack and what its results lack raise a dozen kinds
        raise BadMessageError("the DHT's dictionary cannot be read") from error
    return [item for item in found if isinstance(item[0], str) and isinstance(item[1], bytes)]


def log(line: str) -> None:
    """Standard error is the parent's log file."""
    print(ascii(line)[1:-1][:MAX_ERROR], file=sys.stderr, flush=True)


def key_of(run_digest: str) -> str:
    return f"{run_digest}.peers"


async def _start(config: DiscoveryConfig, authority: bytes, sign: Callable[[str], Awaitable[AccessToken]]) -> DHTNode:
    p2p = await AdmittedP2P.create(
        host_maddrs=None if config.client_mode else config.listen,
        no_listen=config.client_mode,
        dht_mode="client",  # libp2p's own, which would give the addresses of all nodes to everybody
        identity_path=config.identity,
        check_if_identity_free=False,
        auto_nat=False,
        nat_port_map=False,
        use_relay=False,
        startup_timeout=START_S,
    )
    validator = AnnouncementValidator(config.run_digest, authority)
    p2p.admit(validator, authority, await sign(p2p.peer_id.to_base58()))
    node = await DHTNode.create(
        p2p,
        client_mode=config.client_mode,
        record_validator=validator,
        cache_refresh_before_expiry=0,
        cache_locally=False,
        cache_nearest=0,
    )
    node.protocol.storage, node.protocol.cache = Announcements(), Announcements()
    return node


async def _join(node: DHTNode, addresses: Iterable[str]) -> None:
    """Greet every initial peer on its own terms: one that answers suffices. Raises UnreachableError."""
    greeting = {asyncio.create_task(_greet(node, peer)) for peer in node.p2p.learn(addresses)}
    problems = ["none of the addresses can be used"]
    while greeting:
        done, greeting = await asyncio.wait(greeting, return_when=asyncio.FIRST_COMPLETED)
        errors = [task.exception() for task in done]
        if None in errors:
            break
        problems = [f"{type(error).__name__}: {error}" for error in errors] + problems
    else:
        raise UnreachableError(max(problems, key=lambda text: CLOCK_IS_OFF in text))  # what its user can do something about
    if greeting:
        await asyncio.wait(greeting, timeout=OTHERS_S)  # whoever is slower joins us later
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(node.find_nearest_nodes([node.node_id]), OTHERS_S)


async def _greet(node: DHTNode, peer: PeerID) -> None:
    """Raises UnreachableError, or hivemind's error on a clock that is wrong."""
    try:
        await asyncio.wait_for(node.p2p.dial(peer), CONNECT_S)
        answer = await node.protocol.call_ping(peer, validate=True, strict=True)
    except Exception as error:
        log(f"{peer.to_base58()}: {type(error).__name__}: {error}")
        raise
    if answer is None:
        raise UnreachableError("no answer from any of the initial nodes")


async def _answer(node: DHTNode, key: str, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "bar":
        node.protocol.record_validator.barred = frozenset(request["peers"])
        return {}
    if request["do"] == "store":
        value, expires = bytes.fromhex(request["value"]), request["expires"]
        storing = asyncio.ensure_future(node.store(key, value, expires, subkey=request["subkey"]))
        done, _ = await asyncio.wait([storing], timeout=FIND_S)
        return {"stored": bool(done) and storing.result()}
    looking = asyncio.ensure_future(node.get(key, latest=True))
    if not (await asyncio.wait([looking], timeout=FIND_S))[0]:
        # Nodes that do not answer are among those asked: what the others said has to do.
        for search in list(node.pending_get_requests[DHTID.generate(key)]):
            search.finish_search()
    found = await looking
    entries = found.value if found is not None and isinstance(found.value, dict) else {}
    validator = node.protocol.record_validator
    values = [entry.value for entry in entries.values() if isinstance(entry.value, bytes)][:MAX_RECORDS]
    values = [value for value in values if validator.read(value).peer not in validator.barred]  # kept since before a ban
    announced = [validator.read(value) for value in values]
    await _meet(node, node.p2p.learn(address for announcement in announced for address in announcement.discovery))
    return {"values": [value.hex() for value in values]}


async def _meet(node: DHTNode, peers: list[PeerID]) -> None:
    """Have some of those in the routing table that are not yet: hivemind hears of nodes before it can know where they are."""
    known = node.protocol.routing_table
    strangers = [peer for peer in peers if peer != node.peer_id and known.get(peer_id=peer) is None]
    if strangers:
        some = random.sample(strangers, min(len(strangers), MAX_MET))
        # One that does not answer is waited for no longer: the ping goes on, and ends by hivemind's own limit.
        await asyncio.wait([asyncio.create_task(node.protocol.call_ping(peer)) for peer in some], timeout=MEET_S)


class Parent:
    """The process that started this one, at the other end of the pipes."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def hear(self) -> dict[str, Any] | None:
        """The next request; None when the parent is gone. Raises ValueError for a line that is none."""
        line = await self._reader.readline()
        if not line:
            return None
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ValueError("a request is an object")
        return request

    def tell(self, message: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    async def sign(self, node: str) -> AccessToken:
        self.tell({"node": node})
        signed = await self.hear()
        if signed is None:
            raise LocalError("the parent is gone")
        return AccessToken(public_key=bytes.fromhex(signed["certificate"]), signature=bytes.fromhex(signed["signature"]))


async def _serve() -> None:
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    asyncio.get_running_loop().set_exception_handler(lambda loop, what: log(f"{what['message']}: {what.get('exception')!r}"))
    parent = Parent(reader)
    node = None
    try:
        if (first := await parent.hear()) is None:
            return  # launched ahead, and then not needed
        config = DiscoveryConfig(**first["config"])
        node = await _start(config, first["authority"].encode(), parent.sign)
        try:
            await _join(node, config.initial_peers)
        except Exception:
            if first["joins"]:
                raise
        addresses = [] if config.client_mode else [str(address) for address in await node.p2p.get_visible_maddrs()]
        parent.tell({"addresses": addresses, "daemon_pid": node.p2p._child.pid})
    except Exception as error:  # noqa: BLE001  the parent turns whatever hivemind raises into a sentence
        parent.tell({"error": f"{type(error).__name__}: {error}"[:MAX_ERROR]})
        await _end(node)
        return
    try:
        while True:
            try:
                if (request := await parent.hear()) is None:
                    break
                parent.tell(await _answer(node, key_of(config.run_digest), request))
            except Exception as error:  # noqa: BLE001  one failed look-up must not end the node
                log(f"{type(error).__name__}: {error}")
                parent.tell({})
    finally:
        await _end(node)


async def _end(node: DHTNode | None) -> None:
    if node is not None:
        await node.shutdown()
        await node.p2p.shutdown()


if __name__ == "__main__":
    asyncio.run(_serve())
