"""`dugnad peer`: the volunteer's command. Imports nothing heavy before the arguments are known to be right."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from peer import ranks
from peer.config import PeerConfig, Precision
from peer.guest import pausing
from protocols.host.child_process import end_with_parent
from protocols.host.home import default_home
from protocols.observations import Role
from protocols.ticket_source import HELP, VARIABLE, read_ticket


def absolute(patterns: list[str] | None) -> list[str]:
    """Paths and globs of files, which begin where the volunteer is."""
    return [str(Path(pattern).expanduser().absolute()) for pattern in patterns or ()]


def peer(
    ticket: Annotated[str | None, typer.Argument(metavar="TICKET", help=HELP)] = None,
    role: Annotated[Role, typer.Option(help="auxiliary: average for others, compute nothing.")] = "contributor",
    client_mode: Annotated[
        bool, typer.Option("--client-mode", help="Open connections but accept none. Found out by itself where it is needed.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Samples per pass; found by trial when left out.")] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="fp32, bf16 or fp16; the fastest here, by trial, when left out.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads for training; found by trial when left out.")] = None,
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Use torch.compile, or never; by trial on a GPU when left out."),
    ] = None,
    retune: Annotated[bool, typer.Option("--retune", help="Repeat the trials. Their result is kept for the next start.")] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on; the one towards the coordinator when left out.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65534, help="Listen on this port and the next; 0 takes free ones.")] = 0,
    announce: Annotated[
        str | None, typer.Option(help="HOST or HOST:PORT under which others reach you, if a router forwards PORT and the next.")
    ] = None,
    port_mapping: Annotated[
        bool, typer.Option(help="Behind a router, ask it by UPnP and NAT-PMP to forward the ports; undone at leaving.")
    ] = True,
    max_upload: Annotated[float | None, typer.Option(min=1.0, help="Give the run at most so many Mbit/s of your line.")] = None,
    max_download: Annotated[float | None, typer.Option(min=1.0, help="Take at most so many Mbit/s from others.")] = None,
    hours: Annotated[str | None, typer.Option(help="Work only then, such as 22:00-07:00; several with commas.")] = None,
    on_battery: Annotated[bool, typer.Option("--on-battery", help="Work also while the computer runs on its battery.")] = False,
    untouched: Annotated[
        float | None, typer.Option(min=0.1, help="Work only when nobody has used this computer for so many minutes.")
    ] = None,
    share_gpu: Annotated[bool, typer.Option("--share-gpu", help="Work also while another program uses the GPU.")] = False,
    max_transfer: Annotated[float | None, typer.Option(min=0.001, help="Send and receive at most so many GB a day.")] = None,
    load: Annotated[int, typer.Option(min=1, max=100, help="Compute for so many percent of the time, on CPU or GPU.")] = 100,
    name: Annotated[str, typer.Option(help="Shown to others; this computer's name when left out.")] = "",
    data: Annotated[list[str] | None, typer.Option(help="Text file or glob to train on instead of the run's own data.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Agree to what the run wants without being asked.")] = False,
    home: Annotated[Path | None, typer.Option(help="Folder for this peer's key, files and log.")] = None,
    start_from: Annotated[Path | None, typer.Option(hidden=True)] = None,
    end_with_standard_input: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Join a run with its ticket.

    Fetches and checks the run's description, shows what the run wants and asks once. Then it picks the device, downloads the
    current state, and contributes.
    Ctrl-C finishes the round under way and leaves; a second Ctrl-C stops at once.

    Example: dugnad peer dugnad1-… --name kitchen-pc
    """
    pinned = read_ticket(ticket)
    if end_with_standard_input:
        end_with_parent()
    config = PeerConfig(
        ticket=pinned,
        role=role,
        client_mode=client_mode,
        device=device,
        micro_batch=micro_batch,
        precision=precision,
        threads=threads,
        compiled=compiled,
        retune=retune,
        host=host,
        port=port,
        announce=announce,
        port_mapping=port_mapping,
        max_upload=max_upload,
        max_download=max_download,
        hours=hours,
        on_battery=on_battery,
        untouched=untouched,
        share_gpu=share_gpu,
        max_transfer=max_transfer,
        load=load,
        name=name,
        data=tuple(absolute(data)),
        yes=yes,
        home=home,
        start_from=start_from,
    )
    config.check()
    if (number := ranks.rank()) > 0:
        from peer.training.local_group import run_rank

        run_rank(number)
    if config.device not in ("auto", "cpu"):  # these are there; a wrong one is to be told before anything is made
        from peer.training.devices import pick_device

        pick_device(config.device)
    from peer.arrival import arrive  # torch and transformers take seconds: a wrong option or ticket should not wait for them

    with arrive(config) as arrival:
        from peer.app import run_peer

        code = run_peer(config, arrival)
        if ranks.size() > 1:
            from peer.training.local_group import dismiss

            dismiss()
        raise typer.Exit(code)


def pause(
    home: Annotated[Path | None, typer.Option(help="The peer's folder; all your peers on this computer when left out.")] = None,
    lasting: Annotated[str | None, typer.Option("--for", help="30m, 2h or 1d; until dugnad resume when left out.")] = None,
) -> None:
    """Let your peers on this computer pause.

    Each finishes the round under way, leaves the run, and frees the memory of the model. A pause also holds for the next start.

    Example: dugnad pause --for 2h
    """
    until = datetime.now() + pausing.length(lasting) if lasting is not None else None
    for peer in _running(home):
        pausing.ask(peer, until)
        print(f"{peer} pauses" + (f" until {until:%H:%M}" if until is not None else "; dugnad resume goes on"))


def resume(
    home: Annotated[Path | None, typer.Option(help="The peer's folder; all your peers on this computer when left out.")] = None,
) -> None:
    """Let your peers on this computer go on after dugnad pause.

    Example: dugnad resume
    """
    for peer in _running(home):
        pausing.end(peer)
        print(f"{peer} goes on")


def _running(home: Path | None) -> list[Path]:
    return pausing.running_in(home) if home is not None else pausing.running(default_home())


def doctor(
    ticket: Annotated[str | None, typer.Argument(metavar="TICKET", help=HELP + " Without any: this computer alone.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    host: Annotated[str | None, typer.Option(help="As for dugnad peer.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65534, help="As for dugnad peer.")] = 0,
    announce: Annotated[str | None, typer.Option(help="As for dugnad peer.")] = None,
    port_mapping: Annotated[bool, typer.Option(help="As for dugnad peer.")] = True,
    data: Annotated[list[str] | None, typer.Option(help="As for dugnad peer.")] = None,
    max_upload: Annotated[float | None, typer.Option(min=1.0, help="As for dugnad peer.")] = None,
    max_download: Annotated[float | None, typer.Option(min=1.0, help="As for dugnad peer.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Find out whether this computer can take part in a run.

    One line for each check, with what to do about it: Python and packages, device, disk, discovery; with a ticket also the
    coordinator, whether others reach this computer, the line, memory and speed. Takes half a minute and leaves nothing behind.
    Fetches no data set, and reads none of your files but those that --data names.
    Exit code 1: it cannot take part.

    Example: dugnad doctor dugnad1-…
    """
    found = read_ticket(ticket) if ticket is not None or VARIABLE in os.environ else None
    from peer.doctor import Wishes
    from peer.doctor_report import run_doctor

    wishes = Wishes(
        device=device,
        host=host,
        port=port,
        announce=announce,
        port_mapping=port_mapping,
        data=tuple(absolute(data)),
        max_upload=max_upload,
        max_download=max_download,
    )
    raise typer.Exit(run_doctor(found, wishes, to_json=json))
