"""Finding peers through the hivemind DHT. Every key, who writes it, and how long it lives, is in this table:

    key                    subkey    value                 written by               lives
    `<run digest>.peers`   peer id   SignedAnnouncement    each reachable peer,     ANNOUNCEMENT_S, written again
                                                           for itself only          three times in that span

A node stores an announcement only if it is signed with a certificate of this run and the subkey is its signer's id (see
discovery_process.AnnouncementValidator), so nobody can write for somebody else. The DHT finds peers; it never decides anything.

hivemind runs in a child process of its own (discovery_process.py): its event loop, its daemon and its logging stay out of
the process that
trains. One JSON object a line: requests go to the child's standard input, replies come from its standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from protocols.errors import BadMessageError, LocalError, PortInUseError, UnreachableError
from protocols.identity import Credentials, verify_signature
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import from_bytes, parsed, to_bytes

ANNOUNCEMENT_S = 30.0
START_S = 60.0
CALL_S = 15.0
KNOWN = 8  # addresses of other nodes that are kept
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Announcement:
    """How to reach a peer. `discovery`: its DHT multiaddresses; `address`: where its gRPC server listens."""

    peer: str
    incarnation: int
    address: str
    name: str
    auxiliary: bool
    discovery: tuple[str, ...]


def sign_announcement(announcement: Announcement, credentials: Credentials) -> bytes:
    body = to_bytes(announcement)
    signature = credentials.key.sign(b"dugnad announcement " + body)
    signed = pb.SignedAnnouncement(announcement=body, signature=signature, certificate=credentials.certificate)
    return signed.SerializeToString()


def read_announcement(data: bytes, authority: bytes) -> Announcement:
    """Raises BadMessageError unless `data` is signed, under this run's authority, by the very peer that it announces."""
    signed = parsed(pb.SignedAnnouncement, data)
    announcement = from_bytes(Announcement, signed.announcement)
    signer = verify_signature(b"dugnad announcement " + signed.announcement, signed.signature, signed.certificate, authority)
    if signer != announcement.peer:
        raise BadMessageError(f"{signer} announces in the name of {announcement.peer}")
    return announcement


async def launch(log_file: Path) -> Process:
    """Start a child that imports hivemind, which takes seconds, and then waits for what `Discovery` tells it. It ends when its
    standard input is closed."""
    environment = {**os.environ, "HIVEMIND_LOGLEVEL": "WARNING", "HIVEMIND_COLORS": "never", "CUDA_VISIBLE_DEVICES": ""}
    with log_file.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "protocols.transport.discovery_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=environment,
            limit=1 << 24,
            # A Ctrl-C in the terminal is for the peer, which leaves in its own time; the child ends when the peer does.
            start_new_session=True,
        )


@dataclass(frozen=True)
class DiscoveryConfig:
    run_digest: str
    authority: str  # PEM
    initial_peers: Sequence[str]  # multiaddresses; empty for the first node
    listen: Sequence[str]  # multiaddresses
    identity: str  # file of the libp2p key; the multiaddress stays the same across restarts
    client_mode: bool = False


class Discovery:
    """The DHT node of this process. start(), then announce() and peers(); aclose() ends the child and its daemon."""

    def __init__(self, config: DiscoveryConfig, log_file: Path, launched: Process | None = None) -> None:
        """`launched`: a child to start with, that imports already. Whoever launched it ends it if it was not needed."""
        self._config = config
        self._log_file = log_file
        self._process: Process | None = None
        self._launched = launched
        self._daemon_pid = 0
        self._client_mode = False
        self._is_stale = False
        self._known: tuple[str, ...] = ()  # other nodes, for when the first ones are gone at a restart
        self._lock = asyncio.Lock()
        self.addresses: tuple[str, ...] = ()

    async def start(self, *, client_mode: bool = False) -> None:
        """In client mode the node takes no connections. Raises UnreachableError when no initial peer answers, PortInUseError when
        the port is taken."""
        self._client_mode = client_mode
        launched = self._launched
        is_waiting = launched is not None and launched.returncode is None
        self._process = launched if is_waiting else await launch(self._log_file)
        try:
            initial = (*self._config.initial_peers, *self._known)
            reply = await self._call({**asdict(self._config), "initial_peers": initial, "client_mode": client_mode}, START_S)
        except BaseException:
            await self.aclose()
            raise
        if "error" in reply:
            await self.aclose()
            self._raise(reply)
        self.addresses = tuple(reply["addresses"])
        self._daemon_pid = reply["daemon_pid"]

    def moved(self) -> None:
        """This machine has another address: the next `be` starts the node again."""
        self._is_stale = True

    async def be(self, *, client_mode: bool) -> None:
        """Start again in that mode, unless it is the present one. Raises as `start` does; the next request then tries again."""
        if client_mode != self._client_mode or self._is_stale:
            self._is_stale = False
            await self.aclose()
            await self.start(client_mode=client_mode)

    async def announce(self, peer: str, signed: bytes) -> None:
        """Store this peer's announcement (see sign_announcement)."""
        reply = await self._request({"do": "store", "subkey": peer, "value": signed.hex(), "lives_s": ANNOUNCEMENT_S})
        if not reply.get("stored"):
            _log.warning("the announcement was not stored on any DHT node")

    async def peers(self) -> list[Announcement]:
        """Whoever announces itself now; entries that do not check are dropped."""
        reply = await self._request({"do": "get"})
        found = []
        for value in reply.get("values", []):
            with contextlib.suppress(BadMessageError):
                found.append(read_announcement(bytes.fromhex(value), self._config.authority.encode()))
        others = [address for item in found for address in item.discovery if address not in self.addresses]
        self._known = tuple(others[:KNOWN]) or self._known
        return found

    async def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.returncode is not None:
            _log.warning("the DHT process ended; starting it again")
            await self.aclose()
            await self.start(client_mode=self._client_mode)
        return await self._call(request, CALL_S)

    async def _call(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        async with self._lock:
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                await process.stdin.drain()
                line = await asyncio.wait_for(process.stdout.readline(), limit_s)
            except (asyncio.TimeoutError, ConnectionError) as error:
                # The reply that may still come would be taken for the next one's: this child is of no use any more.
                process.kill()
                raise UnreachableError(f"the DHT process did not answer within {limit_s:.0f} s (see {self._log_file})") from error
        if not line:
            raise LocalError(f"the DHT process ended (see {self._log_file})")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _raise(self, reply: dict[str, Any]) -> None:
        text = str(reply["error"])
        if "address already in use" in text or "failed to listen" in text:
            raise PortInUseError(
                f"the DHT cannot listen on {', '.join(self._config.listen)}: the port is in use", remedy="Choose another --port."
            )
        if "local time must be within" in text:
            raise LocalError(
                "this computer's clock is off by more than 3 seconds, which the DHT refuses",
                remedy="Switch on automatic time (NTP), then join again.",
            )
        raise UnreachableError(
            f"no DHT node answers at {', '.join(self._config.initial_peers) or 'all'}: {text}",
            remedy="Check that the coordinator runs and that a firewall lets its ports through.",
        )

    async def aclose(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), 5)
            except asyncio.TimeoutError:
                process.kill()
                await process.wait()
        if self._daemon_pid:
            with contextlib.suppress(ProcessLookupError):  # it is there only if the child was killed before it could end it
                os.kill(self._daemon_pid, signal.SIGKILL)
            self._daemon_pid = 0
