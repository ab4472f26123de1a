"""The child process around one hivemind DHT node (see discovery.py for why, and for the keys). The only file that imports
hivemind."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from hivemind.dht.node import DHTNode
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.p2p import P2P
from hivemind.utils import MSGPackSerializer, get_dht_time

from protocols.errors import BadMessageError
from protocols.transport.discovery import START_S, DiscoveryConfig, read_announcement


class AnnouncementValidator(RecordValidatorBase):  # type: ignore[misc]  # hivemind is untyped
    """A record is stored only if its signer is the peer that its subkey names."""

    def __init__(self, authority: bytes) -> None:
        self._authority = authority

    def validate(self, record: DHTRecord) -> bool:
        try:
            value = MSGPackSerializer.loads(record.value)
            subkey = MSGPackSerializer.loads(record.subkey)
            return bool(read_announcement(value, self._authority).peer == subkey)
        except (BadMessageError, ValueError, TypeError):
            return False


async def _start(config: DiscoveryConfig) -> DHTNode:
    p2p = await P2P.create(
        initial_peers=config.initial_peers or None,
        host_maddrs=None if config.client_mode else config.listen,
        no_listen=config.client_mode,
        dht_mode="client" if config.client_mode else "server",
        identity_path=config.identity,
        check_if_identity_free=False,
        auto_nat=False,
        nat_port_map=False,
        use_relay=False,
        startup_timeout=START_S,
    )
    return await DHTNode.create(
        p2p,
        initial_peers=config.initial_peers or None,
        client_mode=config.client_mode,
        record_validator=AnnouncementValidator(config.authority.encode()),
        cache_refresh_before_expiry=0,
        cache_locally=False,
    )


async def _answer(node: DHTNode, key: str, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "store":
        expires = get_dht_time() + request["lives_s"]
        stored = await node.store(key, bytes.fromhex(request["value"]), expires, subkey=request["subkey"])
        return {"stored": bool(stored)}
    found = await node.get(key, latest=True)
    entries = found.value if found is not None and isinstance(found.value, dict) else {}
    return {"values": [entry.value.hex() for entry in entries.values() if isinstance(entry.value, bytes)]}


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    def reply(message: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    if not (first := await reader.readline()):
        return  # launched ahead, and then not needed
    config = DiscoveryConfig(**json.loads(first))
    try:
        node = await _start(config)
    except Exception as error:  # noqa: BLE001  the parent turns whatever hivemind raises into a sentence
        reply({"error": f"{type(error).__name__}: {error}"})
        return
    try:
        addresses = [] if config.client_mode else [str(address) for address in await node.p2p.get_visible_maddrs()]
        reply({"addresses": addresses, "daemon_pid": node.p2p._child.pid})
        while line := await reader.readline():  # end-of-file: the parent is gone
            try:
                reply(await _answer(node, f"{config.run_digest}.peers", json.loads(line)))
            except Exception as error:  # noqa: BLE001  one failed look-up must not end the node
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                reply({})
    finally:
        await node.shutdown()


if __name__ == "__main__":
    asyncio.run(_serve())
