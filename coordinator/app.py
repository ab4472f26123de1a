"""One start of a coordinator, from the run file to the exit code: puts the parts together and takes them apart again."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import threading
from dataclasses import replace
from pathlib import Path

from coordinator.auxiliary import AuxiliaryPeer
from coordinator.checkpoints.facts import SNAPSHOT
from coordinator.checkpoints.store import Checkpoints
from coordinator.config import CoordinatorConfig
from coordinator.genesis import RunFolder, open_run
from coordinator.invites import Admission
from coordinator.monitor import Monitor, Run
from coordinator.network import Network, announced_hosts
from coordinator.sinks.base import Sinks
from coordinator.sinks.console import Console
from coordinator.sinks.history import History
from coordinator.swarm_view import SwarmView
from protocols.errors import DugnadError
from protocols.host.files import write_durably
from protocols.host.home import Home
from protocols.host.interrupts import EXIT_INTERRUPTED, two_stage_interrupts
from protocols.identity import Ticket
from protocols.observations import Observation, Swarm
from protocols.optimization import build_optimizer, build_scheduler
from protocols.run_spec import RunSpec
from protocols.tasks.registry import open_task
from protocols.transport import addresses
from protocols.transport.network_thread import NetworkThread

EXIT_DONE = 0


def run_coordinator(config: CoordinatorConfig) -> int:
    """Start or resume a run and watch it to its end. `config` is checked. Returns the exit code; raises DugnadError for what a
    person should read."""
    author = RunSpec.load(config.run_file)
    path = config.directory or Path("runs") / author.run.name
    is_new = not path.exists()
    with Home.claim(path):
        with Console() as console:
            checkpoints = Checkpoints(path / "checkpoints", keep=author.checkpoint.keep)
            try:
                folder = open_run(author, path, checkpoints, console.status)
            except DugnadError:
                if is_new:  # nothing came of it, so nothing stays
                    shutil.rmtree(path, ignore_errors=True)
                raise
            newest = checkpoints.latest()
            if newest is not None and newest.facts.epoch == author.training.max_epochs:
                console.say(f"The run was completed before. Checkpoint: {newest.path}")
                return EXIT_DONE
            # Add a sink here. They are closed in this order.
            with contextlib.closing(Sinks([History(path), console])) as sinks, NetworkThread() as thread:
                session = _Session(config, folder, checkpoints, sinks, console, Network(config, folder, thread))
                code = session.run()
        console.say(session.closing_line)
    return code


class _Session:
    """A run's folder, its monitor, the network and the auxiliary peer, from the ticket to the last checkpoint."""

    def __init__(
        self,
        config: CoordinatorConfig,
        folder: RunFolder,
        checkpoints: Checkpoints,
        sinks: Sinks,
        console: Console,
        network: Network,
    ) -> None:
        self._config = config
        self._folder = folder
        self._sinks = sinks
        self._console = console
        self._network = network
        self._inbox: queue.SimpleQueue[Observation | Admission] = queue.SimpleQueue()
        self._interrupted = threading.Event()
        self._contributors = 0  # connected now
        self._monitor = Monitor(self._open(), sinks, checkpoints, self._inbox, network.fetch, console.status)
        self.closing_line = ""  # to be said after the screen has closed

    def _open(self) -> Run:
        self._console.status("Loading the task")
        spec = self._folder.spec
        task = open_task(spec, self._folder.path)
        model = task.build_model()
        return Run(
            spec=spec,
            task=task,
            model=model,
            schedule=build_scheduler(spec, build_optimizer(spec, model)),
            authority=self._folder.credentials.authority,
        )

    def run(self) -> int:
        """Returns the exit code."""
        monitor = self._monitor
        with contextlib.ExitStack() as stack:
            self._console.status("Opening the ports")
            ticket = stack.enter_context(self._network.serving(lambda: monitor.held_out, self._inbox.put))
            monitor.start(self._folder.snapshot.read_bytes(), resumed=self._folder.resumed)
            auxiliary = self._auxiliary(ticket)
            stack.callback(auxiliary.stop)
            auxiliary.start(self._folder.snapshot)
            self._say_how_to_join(ticket)
            stack.enter_context(two_stage_interrupts(self._interrupted.set, self._console.close))
            stack.enter_context(self._network.watching(self._take_in, lambda: monitor.epoch, monitor.lineage))
            while not self._interrupted.is_set() and not monitor.finished:
                monitor.step()
                why = auxiliary.restarted(self._newest_snapshot())
                if why:
                    self._sinks.event("auxiliary_restarted", reason=why)
            if self._interrupted.is_set():
                self._console.say("Stopping: writing a last checkpoint (Ctrl-C again to stop at once)")
                monitor.keep(checkpoint=True)
                others = "the peers go on" if self._contributors else "nobody trains now"
                self.closing_line = f"Stopped; {others}. Checkpoint: {monitor.last_checkpoint}"
                return EXIT_INTERRUPTED
            monitor.finish()
        self.closing_line = f"The run is complete. Checkpoint: {monitor.last_checkpoint}"
        return EXIT_DONE

    def _take_in(self, observation: Observation) -> None:
        """On the network's thread."""
        if isinstance(observation, Swarm):
            self._contributors = sum(peer.role == "contributor" for peer in observation.peers)
            # Not by way of the main thread: the view goes on while that one measures or writes a checkpoint.
            self._sinks.swarm(SwarmView.of(observation, self._folder.spec))
        self._inbox.put(observation)

    def _newest_snapshot(self) -> Path:
        newest = self._monitor.last_checkpoint
        return newest / SNAPSHOT if newest is not None else self._folder.snapshot

    def _auxiliary(self, ticket: Ticket) -> AuxiliaryPeer:
        host, port = self._config.host, self._config.port
        # The child reaches this process on the machine itself. What it announces is for others.
        here = addresses.LOOPBACK[addresses.family_of(host)] if addresses.is_everywhere(host) else host
        local = replace(ticket, hosts=(here,))
        home = self._folder.path / "auxiliary"
        return AuxiliaryPeer(str(local), home, host=host, announce=announced_hosts(self._config)[0], port=port + 2 if port else 0)

    def _say_how_to_join(self, ticket: Ticket) -> None:
        write_durably(self._folder.path / "ticket.txt", f"{ticket}\n".encode(), mode=0o600)
        command = f"dugnad peer {ticket}"
        self._console.say("Volunteers join with this line:\n\n" + command + "\n")
        if self._config.json:
            print(json.dumps({"ticket": str(ticket), "join": command, "directory": str(self._folder.path)}), flush=True)
