"""Finding peers through the hivemind DHT. Every key, who writes it, and how long it lives, is in this table:

    key                    subkey    value                 written by               lives
    `<run digest>.peers`   peer id   SignedAnnouncement    each reachable peer,     ANNOUNCEMENT_S, written again
                                                           for itself only          three times in that span

A node stores nothing else (see discovery_process.AnnouncementValidator): an announcement must be signed with a certificate of
this run, by the peer that its subkey names, and ends when its signer said, at most MAX_AHEAD_S from now. So nobody can write
for somebody else, or keep an old announcement alive. A node answers only nodes that show a certificate of the run. The DHT
finds peers; it never decides anything.

hivemind runs in a child process of its own (discovery_process.py): its event loop, its daemon and its logging stay out of the
process that trains. One JSON object a line, of at most MAX_LINE_BYTES: requests go to the child's standard input, replies come
from its standard output.
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
from protocols.host.files import keep_short
from protocols.identity import Credentials
from protocols.transport.announcements import (
    MAX_ADDRESSES,
    MAX_RECORD_BYTES,
    Announcement,
    read_announcement,
    sign_announcement,
    usable_addresses,
)

START_S = 60.0
CALL_S = 15.0
KNOWN = 8  # addresses of other nodes that are kept
MAX_INITIAL = 32  # addresses of other nodes that are tried at a start
MAX_RECORDS = 900  # announcements that one node keeps: hivemind hands them out in one message of at most 4 MiB
MAX_LINE_BYTES = 4 * MAX_RECORDS * MAX_RECORD_BYTES  # all announcements in hex are half of it
CLOCK_IS_OFF = "local time must be within"  # in hivemind's words
LOG_BYTES = 4 << 20  # of what the child complains of, twice
NODE = b"dugnad DHT node "
_log = logging.getLogger(__name__)


def sign_node(node: str, credentials: Credentials) -> tuple[bytes, bytes]:
    """(certificate, signature) with which the DHT node of the libp2p id `node` shows that it is of the run. libp2p's own
    handshake proves the id on each connection, so that nobody else can use them."""
    return credentials.certificate, credentials.key.sign(NODE + node.encode())


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
            limit=MAX_LINE_BYTES,
            # A Ctrl-C in the terminal is for the peer, which leaves in its own time; the child ends when the peer does.
            start_new_session=True,
        )


@dataclass(frozen=True)
class DiscoveryConfig:
    run_digest: str
    initial_peers: Sequence[str]  # multiaddresses, of which those that are none are passed over; empty for the first node
    listen: Sequence[str]  # multiaddresses
    identity: str  # file of the libp2p key; the multiaddress stays the same across restarts
    client_mode: bool = False


class Discovery:
    """The DHT node of this process. start(), then announce() and peers(); aclose() ends the child and its daemon."""

    def __init__(
        self, config: DiscoveryConfig, credentials: Credentials, log_file: Path, launched: Process | None = None
    ) -> None:
        """`credentials`: by which other nodes see that this one belongs to the run.
        `launched`: a child to start with, that imports already. Whoever launched it ends it if it was not needed."""
        self._config = config
        self._credentials = credentials
        self._log_file = log_file
        self._process: Process | None = None
        self._launched = launched
        self._daemon_pid = 0
        self._client_mode = False
        self._is_stale = False
        self._barred: frozenset[str] = frozenset()
        self._has_barred: tuple[Process | None, frozenset[str]] = (None, frozenset())  # which child was told of whom
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
        initial = usable_addresses((*self._config.initial_peers, *self._known), MAX_INITIAL)
        authority = self._credentials.authority.decode()
        config = {**asdict(self._config), "initial_peers": initial, "client_mode": client_mode}
        try:
            reply = await self._call(
                {"config": config, "authority": authority, "joins": bool(self._config.initial_peers)}, START_S
            )
            if "node" in reply:
                certificate, signature = sign_node(str(reply["node"]), self._credentials)
                reply = await self._call({"certificate": certificate.hex(), "signature": signature.hex()}, START_S)
        except BaseException:
            await self.aclose()
            raise
        if "addresses" not in reply:
            await self.aclose()
            self._raise(reply)
        self.addresses = usable_addresses(reply["addresses"], MAX_ADDRESSES)
        self._daemon_pid = reply["daemon_pid"]

    def moved(self) -> None:
        """This machine has another address: the next `be` starts the node again."""
        self._is_stale = True

    def bar(self, peers: frozenset[str]) -> None:
        """From the next request on, the node keeps no announcement of these, and neither answers nor believes their nodes."""
        self._barred = peers

    async def be(self, *, client_mode: bool) -> None:
        """Start again in that mode, unless it is the present one. Raises as `start` does; the next request then tries again."""
        if client_mode != self._client_mode or self._is_stale:
            self._is_stale = False
            await self.aclose()
            await self.start(client_mode=client_mode)

    async def announce(self, announcement: Announcement) -> None:
        """Store this peer's announcement, until it expires."""
        signed = sign_announcement(announcement, self._credentials)
        request = {"do": "store", "subkey": announcement.peer, "value": signed.hex(), "expires": announcement.expires}
        if not (await self._request(request)).get("stored"):
            _log.warning("the announcement was not stored on any DHT node")

    async def peers(self) -> list[Announcement]:
        """Whoever announces itself now; entries that do not check are dropped."""
        reply = await self._request({"do": "get"})
        found = []
        for value in reply.get("values", []):
            with contextlib.suppress(BadMessageError):
                announcement = read_announcement(bytes.fromhex(value), self._credentials.authority)
                if announcement.peer not in self._barred:
                    found.append(announcement)
        others = [address for item in found for address in item.discovery if address not in self.addresses]
        self._known = tuple(others[:KNOWN]) or self._known
        return found

    async def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.returncode is not None:
            _log.warning("the DHT process ended; starting it again")
            await self.aclose()
            await self.start(client_mode=self._client_mode)
        if self._has_barred != (self._process, self._barred) and (self._barred or self._has_barred[1]):
            told = (self._process, self._barred)
            await self._call({"do": "bar", "peers": sorted(told[1])}, CALL_S)
            self._has_barred = told
        keep_short(self._log_file, LOG_BYTES)
        return await self._call(request, CALL_S)

    async def _call(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        async with self._lock:
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                await process.stdin.drain()
                line = await asyncio.wait_for(process.stdout.readline(), limit_s)
                reply = json.loads(line) if line else {}
                if not isinstance(reply, dict):
                    raise ValueError("no object")
            except (asyncio.TimeoutError, ConnectionError) as error:
                # The reply that may still come would be taken for the next one's: this child is of no use any more.
                await _end(process)
                raise UnreachableError(f"the DHT process did not answer within {limit_s:.0f} s (see {self._log_file})") from error
            except ValueError as error:  # too long a line, or no JSON: where the next one begins is not known
                await _end(process)
                raise LocalError(f"the DHT process gave an answer that cannot be read (see {self._log_file})") from error
            if not line:
                await _end(process)
                raise LocalError(f"the DHT process ended (see {self._log_file})")
        return reply

    def _raise(self, reply: dict[str, Any]) -> None:
        text = str(reply.get("error", "no answer"))
        if "address already in use" in text or "failed to listen" in text:
            raise PortInUseError(
                f"the DHT cannot listen on {', '.join(self._config.listen)}: the port is in use", remedy="Choose another --port."
            )
        if CLOCK_IS_OFF in text:
            raise LocalError(
                "this computer's clock is off by more than 3 seconds, which the DHT refuses",
                remedy="Switch on automatic time (NTP), then join again.",
            )
        raise UnreachableError(
            f"no DHT node answers at {', '.join(usable_addresses(self._config.initial_peers, MAX_INITIAL)) or 'all'}: {text}",
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
                await _end(process)
        if self._daemon_pid:
            with contextlib.suppress(ProcessLookupError):  # it is there only if the child was killed before it could end it
                os.kill(self._daemon_pid, signal.SIGKILL)
            self._daemon_pid = 0


async def _end(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
