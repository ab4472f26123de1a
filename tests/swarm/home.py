"""A home behind a router, in network namespaces: the world, the router that hides the home from it, and a computer in the home.

The router masks outgoing connections and forwards what it was asked to, with nftables. Nobody outside has a way to the home.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pytest

from benchmarks.namespaces import DEVICE, Hosts, NamespaceError
from protocols.transport import nat_pmp
from tests.home_router import Entry, HomeRouter

WORLD, HOME = "11.0.79", "192.168.83"  # addresses that are global, and such as a home has
WORLD_6, HOME_6 = "2a00:79:0:1", "2a00:79:0:2"  # both are global
_RULES = """
table ip nat {
  chain incoming { type nat hook prerouting priority -100; }
  chain outgoing { type nat hook postrouting priority 100; oifname "world" masquerade; }
}
"""


class Home:
    """`coordinator` and `computer` come before a command that is to run in the world and at home."""

    def __init__(self, speaks: str, folder: Path, *, ipv6: bool = False) -> None:
        """`speaks`: NAT-PMP, UPnP, or nothing. `ipv6`: everybody has a global address, too, and the router keeps nothing out."""
        self._ipv6 = ipv6
        self._world = Hosts(1, subnet=WORLD)
        self._hosts = Hosts(2, subnet=HOME)
        self._speaks = speaks
        self._table = folder / "table.json"
        self._router: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()
        self.coordinator = self._world.inside(0)
        self.coordinator_address = self._world.addresses[0]
        self.computer = self._hosts.inside(1)
        self.computer_address = self._hosts.addresses[1]
        self.router_address = f"{WORLD}.100"

    def __enter__(self) -> Home:
        if shutil.which("nft") is None:
            pytest.skip("a router needs the command nft")
        try:
            self._stack.enter_context(self._world)
            self._stack.enter_context(self._hosts)
        except NamespaceError as error:
            self._stack.close()
            pytest.skip(f"network namespaces cannot be made here: {error}")
        with contextlib.ExitStack() as until_whole:
            until_whole.callback(self._stack.close)
            self._wire()
            until_whole.pop_all()
        return self

    def _wire(self) -> None:
        router, bridge = self._hosts.names[0], self._world.bridge
        _run("ip", "-n", bridge, "link", "add", "router", "type", "veth", "peer", "name", "world", "netns", router)
        _run("ip", "-n", bridge, "link", "set", "router", "master", "middle", "up")
        _run("ip", "-n", router, "address", "add", f"{self.router_address}/24", "dev", "world")
        _run("ip", "-n", router, "link", "set", "world", "up")
        _run("ip", "-n", self._hosts.names[1], "route", "add", "default", "via", self._hosts.addresses[0])
        if self._ipv6:
            self._wire_ipv6()
        inside = self._hosts.inside(0)
        _run(*inside, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        subprocess.run([*inside, "nft", "-f", "-"], input=_RULES.encode(), check=True)
        command = [sys.executable, "-m", "tests.swarm.home", self._speaks, self._hosts.addresses[0], self.router_address]
        self._router = subprocess.Popen([*inside, *command, str(self._table)], stdin=subprocess.PIPE)
        self._stack.callback(self._end_router)
        deadline = time.monotonic() + 20
        while not self._table.exists():
            assert self._router.poll() is None and time.monotonic() < deadline, "the router does not start"
            time.sleep(0.02)

    def _wire_ipv6(self) -> None:
        (world,), (router, computer) = self._world.names, self._hosts.names
        for name, device, address in (
            (world, DEVICE, f"{WORLD_6}::1"),
            (router, "world", f"{WORLD_6}::100"),
            (router, DEVICE, f"{HOME_6}::1"),
            (computer, DEVICE, f"{HOME_6}::7"),
        ):
            _run("ip", "-n", name, "address", "add", f"{address}/64", "dev", device, "nodad")
        _run("ip", "-n", computer, "-6", "route", "add", "default", "via", f"{HOME_6}::1")
        _run("ip", "-n", world, "-6", "route", "add", "default", "via", f"{WORLD_6}::100")
        _run(*self._hosts.inside(0), "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")

    def _end_router(self) -> None:
        assert self._router is not None
        self._router.communicate()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def forwarded(self) -> dict[int, list[object]]:
        """What the router forwards now: its port -> [host, port, seconds]."""
        return {int(port): entry for port, entry in json.loads(self._table.read_text()).items()}

    def is_forwarded_to(self, host: str) -> bool:
        return any(entry[0] == host for entry in self.forwarded().values())

    def move(self) -> str:
        """The computer gets another address, as in another network. Returns it."""
        name, new = self._hosts.names[1], f"{HOME}.77"
        _run("ip", "-n", name, "address", "add", f"{new}/24", "dev", DEVICE)
        _run("ip", "-n", name, "address", "del", f"{self.computer_address}/24", "dev", DEVICE)  # takes the other one with it
        _run("ip", "-n", name, "address", "replace", f"{new}/24", "dev", DEVICE)
        _run("ip", "-n", name, "route", "replace", "default", "via", self._hosts.addresses[0])
        return new


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _main(speaks: str, host: str, outside: str, table: str) -> None:
    """The router's own program: serves until its standard input ends."""

    def changed(entries: dict[int, Entry]) -> None:
        rules = ["flush chain ip nat incoming"]
        for port, entry in entries.items():
            rules.append(f"add rule ip nat incoming ip daddr {outside} tcp dport {port} dnat to {entry.host}:{entry.port}")
        subprocess.run(["nft", "-f", "-"], input="\n".join(rules).encode(), check=True)
        aside = Path(table).with_suffix(".new")
        aside.write_text(json.dumps({port: [entry.host, entry.port, entry.lease_s] for port, entry in entries.items()}))
        aside.replace(table)

    router = HomeRouter(speaks, host=host, outside=outside, nat_pmp_port=nat_pmp.PORT, changed=changed)
    with router if speaks else contextlib.nullcontext():
        changed({})
        while os.read(0, 1):
            pass


if __name__ == "__main__":
    arguments: Sequence[str] = sys.argv[1:]
    _main(*arguments)
