"""`dugnad doctor`: can this computer take part? One line for each check, with what to do about it.

Without a ticket it looks at the computer alone. With one it also tries the run: coordinator, other peers, line, model and data.
Nothing stays behind: it enrols with a key of its own, and what it fetches goes into a folder that is removed. It fetches no data
set, and reads no other file of the volunteer's than those that --data names: it trains on what came with the run.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from humanize import naturalsize

from peer.consent import MEMORY_BYTES_A_PARAMETER
from peer.environment import Environment
from peer.epoch.bandwidth_probe import BandwidthProbe
from peer.epoch.reachability import Reachability
from peer.listening import WaysIn
from peer.training.devices import describe, pick_device
from peer.training.tuning import Choices, Trials, find_way
from protocols.errors import DugnadError
from protocols.host.home import default_home
from protocols.host.terminal import plural
from protocols.identity import Authority, Credentials, Key, Ticket, new_incarnation
from protocols.reasons import Reason
from protocols.round.records import Candidate, Hello
from protocols.signing import CertificateSigner
from protocols.tasks.assets import write_asset
from protocols.tasks.registry import open_task
from protocols.transport import addresses
from protocols.transport.bandwidth import Bandwidth
from protocols.transport.discovery import Discovery, DiscoveryConfig
from protocols.transport.enrolling import Enrolment, enrol, fetch_assets, missing_assets, ways_to
from protocols.transport.frames import FrameStream, Kind
from protocols.transport.interface import Stream, refusal
from protocols.transport.kept_enrolment import key_for
from protocols.transport.network import NetworkTransport
from protocols.transport.network_thread import NetworkThread

State = Literal["ok", "warning", "failed"]
PACKAGES = ("torch", "transformers", "hivemind", "grpcio", "numpy", "cryptography")
PYTHONS = ((3, 10), (3, 13))
MIN_FREE_DISK_BYTES, MIN_OPEN_FILES = 1 << 30, 1024


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, and what to do if it is not well."""

    name: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Wishes:
    """How the volunteer would start the peer."""

    device: str = "auto"
    host: str | None = None
    port: int = 0
    announce: str | None = None
    port_mapping: bool = True
    data: tuple[str, ...] = ()
    max_upload: float | None = None  # Mbit/s
    max_download: float | None = None


Report = Callable[[Check], None]


def examine(ticket: Ticket | None, wishes: Wishes, report: Report) -> bool:
    """Report each check as it is done. False if this computer cannot take part."""
    failed: list[Check] = []

    def tell(check: Check) -> None:
        if check.state == "failed":
            failed.append(check)
        report(check)

    for check in _machine(wishes):
        tell(check)
    with tempfile.TemporaryDirectory(prefix="dugnad-doctor-") as folder, NetworkThread() as network:
        if ticket is None:
            tell(network.call(_discovery(Path(folder), (), _own_credentials(Path(folder)), "0" * 64)))
        else:
            for check in network.call(_ways_to(ticket)):
                tell(check)
            with _as_check("enrolment", tell):
                enrolment = network.call(enrol(ticket, key_for(ticket)))
                tell(Check("enrolment", "ok", f"admitted to run {enrolment.spec.run.name}"))
                whole = (enrolment.discovery, enrolment.credentials, enrolment.spec.digest)
                tell(network.call(_discovery(Path(folder), *whole)))
                for check in network.call(_others(enrolment, wishes)):
                    tell(check)
                with _as_check("model and data", tell):
                    for check in _training(network, enrolment, ticket, wishes, Path(folder)):
                        tell(check)
    return not failed


@contextlib.contextmanager
def _as_check(name: str, tell: Report) -> Iterator[None]:
    try:
        yield
    except DugnadError as error:
        tell(Check(name, "failed", str(error), error.remedy))


# -- this computer ---------------------------------------------------------------------------------------------------------------


def _machine(wishes: Wishes) -> Iterator[Check]:
    version = platform.python_version()
    least, most = PYTHONS
    right = least <= sys.version_info[:2] <= most
    remedy = "" if right else f"Use Python {least[0]}.{least[1]} to {most[0]}.{most[1]}."
    yield Check("python", "ok" if right else "failed", f"Python {version} on {platform.system()}", remedy)
    yield _packages()
    try:
        device = pick_device(wishes.device)
        yield Check("device", "ok", describe(device) + f", {naturalsize(_free_bytes(device))} free")
    except DugnadError as error:
        yield Check("device", "failed", str(error), error.remedy)
    home = default_home()
    free = shutil.disk_usage(next(folder for folder in (home, *home.parents) if folder.exists())).free
    enough = free >= MIN_FREE_DISK_BYTES
    remedy = "" if enough else "Free some space, or choose another disk with --home or $DUGNAD_HOME."
    yield Check("disk", "ok" if enough else "failed", f"{naturalsize(free)} free for {home}", remedy)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    many = files == resource.RLIM_INFINITY or files >= MIN_OPEN_FILES
    remedy = "" if many else f"Raise it before you start the peer: ulimit -n {4 * MIN_OPEN_FILES}"
    limit = "any number of" if files == resource.RLIM_INFINITY else f"{files:,}"
    yield Check("open files", "ok" if many else "warning", f"{limit} open files at once", remedy)


def _packages() -> Check:
    versions, missing = [], []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        return Check("packages", "failed", f"missing: {', '.join(missing)}", "Install dugnad again: make install")
    return Check("packages", "ok", ", ".join(versions))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _own_credentials(folder: Path) -> Credentials:
    return Authority.load_or_create(folder).coordinator_credentials(Key.generate())


async def _discovery(folder: Path, initial: tuple[str, ...], credentials: Credentials, run_digest: str) -> Check:
    """The DHT node starts, and joins the run's if there is one. It also notices a clock that is wrong."""
    listen = (addresses.multiaddress(addresses.LOOPBACK[socket.AF_INET], 0),)
    config = DiscoveryConfig(run_digest, initial, listen, str(folder / "discovery.key"))
    discovery = Discovery(config, credentials, folder / "discovery.log")
    began = time.monotonic()
    try:
        await discovery.start(client_mode=bool(initial))
    except DugnadError as error:
        return Check("discovery", "failed", str(error), error.remedy)
    finally:
        await discovery.aclose()
    what = "the DHT node starts and finds the run's, and the clocks agree" if initial else "the DHT node starts"
    return Check("discovery", "ok", f"{what} ({time.monotonic() - began:.1f} s)")


# -- the run ---------------------------------------------------------------------------------------------------------------------


async def _ways_to(ticket: Ticket) -> list[Check]:
    """The coordinator by each address of each host. One that answers is enough."""
    found = []
    for way in await ways_to(ticket):
        problem = f": {way.problem or 'answers'}"
        found.append(Check(f"way by {way.kind}", "warning" if way.problem else "ok", f"coordinator at {way.address}{problem}"))
    if not any(check.state == "ok" for check in found):
        remedy = "Check your connection; ask the organiser whether the coordinator runs, and for a new ticket if it moved."
        found.append(Check("coordinator", "failed", "it answers at none of the ticket's addresses", remedy))
    return found


class _Nobody:
    """Answers whoever dials back, and takes part in nothing."""

    async def serve(self, stream: Stream, opening: Any) -> None:
        raise refusal(Reason.NOT_CAUGHT_UP, "this is an examination, and no peer")

    async def serve_bulk(self, stream: FrameStream, kind: Kind, length: int) -> None:
        stream.close()


async def _others(enrolment: Enrolment, wishes: Wishes) -> list[Check]:
    """Do other peers reach this computer, and how fast is the line to them?"""
    credentials = enrolment.credentials
    transport = NetworkTransport(credentials, enrolment.spec.digest, Bandwidth.limited(wishes.max_upload, wishes.max_download))
    peers = list(enrolment.peers)
    if not peers:
        await transport.aclose()
        remedy = "Wait until the coordinator has started its auxiliary peer, then try again."
        return [Check("others", "warning", "no peer is there to try the line with", remedy)]
    router: list[Check] = []

    def told(event: str, /, **fields: Any) -> None:
        if event == "port_mapping":
            router.append(_router(**fields))

    ways_in = WaysIn(enrolment.coordinator, told, host=wishes.host, announce=wishes.announce, port_mapping=wishes.port_mapping)
    try:
        address, bulk_address = ways_in.listening(*transport.listen(ways_in.listen_host, wishes.port))
        hello = Hello(new_incarnation(time.time_ns()), False, address, bulk_address, "doctor")
        await transport.serve(_Nobody())
        directory: Any = None
        environment = Environment(credentials.peer_id, transport, directory, CertificateSigner(credentials), ways_in=ways_in.find)
        reached = await _reached(environment, hello, peers)
        return [*router, reached, *await _line(environment, peers)]
    except DugnadError as error:
        return [Check("ports", "failed", str(error), error.remedy)]
    finally:
        await ways_in.aclose()
        await transport.aclose()


def _router(host: str = "", port: int = 0, bulk_port: int = 0, by: str = "", problem: str = "") -> Check:
    if not problem:
        return Check("router", "ok", f"it forwards ports on request ({by}): {port} and {bulk_port} of {host}")
    return Check(
        "router", "warning", f"asked to forward ports: {problem}", "Switch on UPnP or NAT-PMP in its settings, if it has them."
    )


async def _reached(environment: Environment, hello: Hello, peers: list[Candidate]) -> Check:
    reachability = Reachability(environment, hello, lambda: peers)
    found = await reachability.hello()
    if not reachability.is_checked:
        return Check("reachable", "warning", "nobody could try whether this computer is reached")
    if found.reachable:
        return Check("reachable", "ok", f"others reach this computer at {found.address} and {found.bulk_address}")
    remedy = "The peer will take part in client mode. To be reached, forward a port P and the next: --port P --announce HOST:P"
    return Check("reachable", "warning", f"others do not reach this computer: {reachability.problem}", remedy)


async def _line(environment: Environment, peers: list[Candidate]) -> list[Check]:
    await BandwidthProbe(environment, lambda: peers).measure()
    bandwidth = environment.transport.bandwidth
    up, down = (direction.bytes_s * 8 / 1e6 for direction in (bandwidth.up, bandwidth.down))
    if not up and not down:
        return [Check("line", "warning", "its speed could not be measured: the peers are busy or away", "Try again.")]
    return [Check("line", "ok", f"{up:,.0f} Mbit/s up, {down:,.0f} Mbit/s down, to {len(peers)} of the run's peers")]


def _training(network: NetworkThread, enrolment: Enrolment, ticket: Ticket, wishes: Wishes, folder: Path) -> Iterator[Check]:
    spec = enrolment.spec
    if missing := missing_assets(spec, folder):
        network.call(fetch_assets(enrolment, ticket, missing, lambda name, content: write_asset(spec, folder, name, content)))
    device = pick_device(wishes.device)
    task = open_task(spec, folder, data_paths=wishes.data)
    yield Check("data", "ok", f"a peer would train on {task.data_source}")
    if not wishes.data:
        task.use_trial_data()
    model = task.build_model()
    elements = sum(parameter.numel() for parameter in model.parameters())
    needs, free = elements * MEMORY_BYTES_A_PARAMETER, _free_bytes(device)
    found = f"{elements:,} parameters, about {naturalsize(needs)} of the {naturalsize(free)} that are free on {device.type}"
    remedy = "" if needs <= free else "Close other programs, or lend a computer with more memory."
    yield Check("memory", "ok" if needs <= free else "failed", found, remedy)
    if needs > free:
        return
    model.to(device)

    trials = Trials(task, model, device, seed=spec.run.seed, peer="doctor")
    way = find_way(device, Choices(compiled=False), spec.training.largest_micro_batch, trials.rate, time.monotonic)
    rate = trials.rate(way)
    speed = f"{way} with {plural(way.threads, 'thread')}: {way.micro_batch / rate:.2f} s, {rate:.1f} samples/s"
    yield Check("speed", "ok", f"{speed}; the run's batch is {spec.training.target_batch_size:,} samples")


def as_json(checks: list[Check], able: bool) -> dict[str, Any]:
    return {"able": able, "checks": [asdict(check) for check in checks]}
