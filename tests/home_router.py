"""A home's router for tests: it answers NAT-PMP, SSDP and UPnP's SOAP calls, and keeps a table of forwarded ports."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

HOST = "127.0.0.1"
SSDP = ("239.255.255.250", 1900)
SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
DEVICE = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
_NOBODY = 9  # the port of the discard service
_DESCRIPTION = f"""<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>
<device><deviceType>{DEVICE}</deviceType><friendlyName>test router</friendlyName><UDN>uuid:1</UDN><deviceList>
<device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><UDN>uuid:2</UDN><deviceList>
<device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType><UDN>uuid:3</UDN><serviceList>
<service><serviceType>{SERVICE}</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>
<controlURL>/control</controlURL><eventSubURL>/events</eventSubURL><SCPDURL>/scpd.xml</SCPDURL></service>
</serviceList></device></deviceList></device></deviceList></device></root>"""


@dataclass(frozen=True)
class Entry:
    """A forwarded port: to whom, and for how long; None: for ever."""

    host: str
    port: int
    lease_s: int | None


class _Refusal(Exception):
    """What the router does not do: UPnP's code and name for it."""


_CONFLICT = _Refusal(718, "ConflictInMappingEntry")
_ONLY_PERMANENT = _Refusal(725, "OnlyPermanentLeasesSupported")
_NOT_AUTHORIZED = _Refusal(606, "Action not authorized")


class HomeRouter:
    """Listens on `host`, the home's side, while in its block. Its other side has the address `outside`."""

    def __init__(
        self,
        speaks: str,
        *,
        host: str = HOST,
        outside: str = "203.0.113.9",
        nat_pmp_port: int = 0,
        changed: Callable[[dict[int, Entry]], None] = lambda table: None,
    ) -> None:
        """`speaks`: NAT-PMP or UPnP. `changed` is called with the table, by outside port."""
        self.speaks = speaks
        self.outside = outside
        self.table: dict[int, Entry] = {}
        self.refuses: set[int] = set()  # ports that it forwards for nobody
        self.refusals = 0
        self.only_for_ever = False  # it knows no leases
        self.noise: list[bytes] = []  # sent before an answer by NAT-PMP
        self.nat_pmp_port = nat_pmp_port or _NOBODY
        self._wanted_port = nat_pmp_port
        self._host = host
        self._changed = changed
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> HomeRouter:
        if self.speaks == "NAT-PMP":
            self._listen_for_nat_pmp()
        else:
            self._listen_for_searches(self._listen_for_soap())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _serve(self, server: socketserver.BaseServer) -> None:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        self._stack.callback(server.server_close)
        self._stack.callback(thread.join)
        self._stack.callback(server.shutdown)

    # -- the table -----------------------------------------------------------------------------------------------------------

    def _forward(self, outside: int, host: str, port: int, lease_s: int) -> None:
        if port in self.refuses:
            self.refusals += 1
            raise _NOT_AUTHORIZED
        if self.only_for_ever and lease_s:
            raise _ONLY_PERMANENT
        entry = self.table.get(outside)
        if entry is not None and (entry.host, entry.port) != (host, port):
            raise _CONFLICT
        self.table[outside] = Entry(host, port, lease_s or None)
        self._changed(self.table)

    def _forget(self, outside: int) -> None:
        self.table.pop(outside, None)
        self._changed(self.table)

    # -- NAT-PMP ---------------------------------------------------------------------------------------------------------------

    def _listen_for_nat_pmp(self) -> None:
        router = self

        class Questions(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                question, sender = self.request
                for answer in (*router.noise, router._answer(question, self.client_address[0])):
                    sender.sendto(answer, self.client_address)

        server = socketserver.UDPServer((self._host, self._wanted_port), Questions)
        self.nat_pmp_port = server.server_address[1]
        self._serve(server)

    def _answer(self, question: bytes, host: str) -> bytes:
        def head(result: int) -> bytes:
            return struct.pack("!BBHI", 0, question[1] + 128, result, 1000)

        if question[1] == 0:
            return head(0) + ipaddress.IPv4Address(self.outside).packed
        _, inside, wished, lease_s = struct.unpack("!HHHI", question[2:])
        if lease_s == 0:
            for outside in [at for at, entry in self.table.items() if (entry.host, entry.port) == (host, inside)]:
                self._forget(outside)
            return head(0) + struct.pack("!HHI", inside, 0, 0)
        while True:
            try:
                self._forward(wished, host, inside, lease_s)
            except _Refusal as refusal:
                if refusal is not _CONFLICT:
                    return head(2) + struct.pack("!HHI", inside, 0, 0)
                wished += 1000
            else:
                return head(0) + struct.pack("!HHI", inside, wished, lease_s)

    # -- UPnP ------------------------------------------------------------------------------------------------------------------

    def _listen_for_searches(self, port: int) -> None:
        """`port`: where the description is."""
        where = f"http://{self._host}:{port}/description.xml"
        fields = ("CACHE-CONTROL: max-age=120", f"ST: {DEVICE}", f"USN: uuid:1::{DEVICE}", f"LOCATION: {where}", "EXT:")
        answer = "\r\n".join(("HTTP/1.1 200 OK", *fields, "SERVER: test/1.0 UPnP/1.1 test/1.0", "", "")).encode()

        class Searches(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                search, sender = self.request
                wanted = re.search(rb"(?im)^ST: *(\S+)", search)
                if search.startswith(b"M-SEARCH") and wanted is not None and wanted[1].decode() == DEVICE:
                    sender.sendto(answer, self.client_address)

        server = socketserver.UDPServer(SSDP, Searches, bind_and_activate=False)
        server.allow_reuse_address = True
        server.server_bind()
        group = socket.inet_aton(SSDP[0]) + socket.inet_aton(self._host)
        server.socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        self._serve(server)

    def _listen_for_soap(self) -> int:
        router = self

        class Web(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(200, _DESCRIPTION)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                action = self.headers["SOAPAction"].strip('"').rpartition("#")[2]
                self._say(*router._act(action, dict(re.findall(r"<(New\w+)>([^<]*)</", body))))

            def _say(self, code: int, text: str) -> None:
                self.send_response(code)
                self.send_header("Content-Type", "text/xml")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *_: Any) -> None:
                """Tests are quiet."""

        web = ThreadingHTTPServer((self._host, 0), Web)
        self._serve(web)
        return int(web.server_address[1])

    def _act(self, action: str, said: dict[str, str]) -> tuple[int, str]:
        """(HTTP status, body)."""
        told = ""
        try:
            if action == "AddPortMapping":
                inside, lease_s = int(said["NewInternalPort"]), int(said["NewLeaseDuration"])
                self._forward(int(said["NewExternalPort"]), said["NewInternalClient"], inside, lease_s)
            elif action == "DeletePortMapping":
                self._forget(int(said["NewExternalPort"]))
            elif action == "GetExternalIPAddress":
                told = f"<NewExternalIPAddress>{self.outside}</NewExternalIPAddress>"
            elif action == "GetStatusInfo":
                told = "<NewConnectionStatus>Connected</NewConnectionStatus><NewUptime>100</NewUptime>"
                told += "<NewLastConnectionError>ERROR_NONE</NewLastConnectionError>"
            else:
                raise _Refusal(401, "Invalid Action")
        except _Refusal as refusal:
            code, name = refusal.args
            error = f"<errorCode>{code}</errorCode><errorDescription>{name}</errorDescription>"
            fault = f'<detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0">{error}</UPnPError></detail>'
            return 500, _envelope(
                f"<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring>{fault}</s:Fault>"
            )
        return 200, _envelope(f'<u:{action}Response xmlns:u="{SERVICE}">{told}</u:{action}Response>')


def _envelope(body: str) -> str:
    xml = "http://schemas.xmlsoap.org/soap/envelope/"
    return f'<?xml version="1.0"?><s:Envelope xmlns:s="{xml}"><s:Body>{body}</s:Body></s:Envelope>'
