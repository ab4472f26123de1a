"""What a person can get wrong on the command line: one or two lines that name the cause and the remedy, and the right exit
code."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from protocols.identity import Ticket
from tests.factories import CORPUS
from tests.swarm.swarm import REPOSITORY, SPEC, Swarm, free_port, run_dugnad, wait_until

RUN = str(REPOSITORY / "examples" / "python_lm" / "run.toml")
AT_ONCE_S = 2.0  # of processor time, since others may use the machine; 0.5 where torch is not even imported
OWN = ("--yes", "--data", f"{CORPUS}/*.txt")


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with Swarm(tmp_path_factory.mktemp("swarm"), seed=21, batch=32) as swarm:
        yield swarm


def processor_s() -> float:
    """That ended children took."""
    times = os.times()
    return times.children_user + times.children_system


def refused(code: int, cause: str, *arguments: str) -> str:
    """Run dugnad; it must end with `code` and say `cause` in at most two lines, without a traceback. Returns what it said."""
    done = run_dugnad(*arguments)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == code, done.stderr
    assert len(said) == 1 and cause in said[0], done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def write_spec(folder: Path, old: str = "", new: str = "", *, text: Path | None = None) -> Path:
    path = folder / "run.toml"
    path.write_text(SPEC.format(seed=1, text=text or folder, batch=32, limit="", codec="fp32", overlap="false").replace(old, new))
    return path


@pytest.mark.parametrize("ticket", ["hello", "dugnad1-", "dugnad1-AAAA", "dugnad9-AAAA"])
def test_a_text_that_is_no_ticket_is_wrong_use(ticket: str) -> None:
    assert "Copy the whole ticket" in refused(2, "ticket", "peer", ticket)


def test_a_ticket_with_a_lost_character_is_noticed_before_any_connection(swarm: Swarm) -> None:
    refused(2, "damaged", "status", swarm.ticket[:-3] + swarm.ticket[-2:])


def test_a_ticket_with_a_secret_that_is_not_the_runs_is_refused(swarm: Swarm, tmp_path: Path) -> None:
    wrong = replace(Ticket.parse(swarm.ticket), secret=bytes(16))
    refused(2, "does not accept this ticket", "peer", str(wrong), "--home", str(tmp_path))


def test_a_ticket_of_another_coordinator_at_that_address_is_refused(swarm: Swarm, tmp_path: Path) -> None:
    wrong = replace(Ticket.parse(swarm.ticket), fingerprint=bytes(32))
    refused(2, "is not the coordinator", "peer", str(wrong), "--home", str(tmp_path))


def test_a_coordinator_that_is_away_is_named_with_its_address(tmp_path: Path) -> None:
    port = free_port()
    away = Ticket(("127.0.0.1",), port, bytes(32), bytes(16))
    said = refused(1, f"127.0.0.1:{port} cannot be reached", "peer", str(away), "--home", str(tmp_path))
    assert "Check that the coordinator runs" in said


def test_a_port_that_is_in_use_is_named(swarm: Swarm, tmp_path: Path) -> None:
    run_file = write_spec(tmp_path, text=CORPUS)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        arguments = ["coordinator", str(run_file), "--dir", str(tmp_path / "run"), "--host", "127.0.0.1", "--port", port]
        assert "--port" in refused(2, f"127.0.0.1:{port}: the port is in use", *arguments)


def test_a_port_that_a_peer_cannot_listen_on_is_refused_before_anything_is_asked_or_loaded(swarm: Swarm, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for first in (port, port - 1):  # it needs that port and the next
            began = processor_s()
            options = ("--port", str(first), "--home", str(tmp_path))
            said = refused(2, f"127.0.0.1:{port}: the port is in use", "peer", swarm.ticket, *options)
            assert processor_s() - began < AT_ONCE_S and "--port" in said


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        pytest.param(("absent.toml",), "there is no run file absent.toml", id="run file"),
        pytest.param((RUN, "--host", "192.0.2.7"), "this machine has no such address", id="a host of another machine"),
        pytest.param((RUN, "--announce", "a:b:c"), "--announce a:b:c is no address", id="announce"),
    ],
)
def test_what_is_wrong_of_a_coordinator_is_refused_at_once(options: tuple[str, ...], cause: str) -> None:
    began = processor_s()
    refused(2, cause, "coordinator", *options)
    assert processor_s() - began < AT_ONCE_S


def test_a_run_file_with_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    run_file = write_spec(tmp_path, "learning_rate", "learnin_rate")
    assert "learning_rate" in refused(2, "optimizer.learnin_rate", "coordinator", str(run_file), "--dir", str(tmp_path / "run"))


def test_a_run_file_that_is_missing_is_wrong_use(tmp_path: Path) -> None:
    refused(2, "absent.toml", "coordinator", str(tmp_path / "absent.toml"))


def test_a_model_that_cannot_be_built_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    run_file = write_spec(tmp_path, "n_embd = 64", "n_embd = 63", text=CORPUS)
    said = refused(2, "must be divisible", "coordinator", str(run_file), "--dir", str(tmp_path / "run"))
    assert "tokenizer" not in said
    assert not (tmp_path / "run").exists()


def test_a_corpus_that_is_missing_is_named(tmp_path: Path) -> None:
    refused(2, str(tmp_path), "coordinator", str(write_spec(tmp_path)), "--dir", str(tmp_path / "run"))


def test_a_corpus_that_is_empty_is_said_to_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    refused(2, "hold 0 characters", "coordinator", str(write_spec(tmp_path)), "--dir", str(tmp_path / "run"))


def test_a_run_names_no_files_on_a_volunteers_disk(swarm: Swarm, tmp_path: Path) -> None:
    refused(2, "each volunteer chooses", "peer", swarm.ticket, "--home", str(tmp_path), "--yes")


def test_without_a_terminal_nobody_is_taken_to_agree(swarm: Swarm, tmp_path: Path) -> None:
    said = refused(2, "nobody is at the terminal", "peer", swarm.ticket, "--home", str(tmp_path), *OWN[1:])
    assert "--yes" in said and "parameters" in said and str(CORPUS) in said
    assert not (tmp_path / "consent.json").exists()


def test_a_batch_smaller_than_one_micro_batch_is_refused(swarm: Swarm, tmp_path: Path) -> None:
    refused(
        2, "larger than the run's whole batch of 32", "peer", swarm.ticket, "--home", str(tmp_path), "--micro-batch", "64", *OWN
    )


def test_a_device_that_is_not_there_is_refused(swarm: Swarm, tmp_path: Path) -> None:
    refused(2, "device", "peer", swarm.ticket, "--home", str(tmp_path), "--device", "cuda:7")


def test_a_folder_with_another_run_is_not_overwritten(swarm: Swarm, tmp_path: Path) -> None:
    before = (swarm.folder / "run" / "run.toml").read_bytes()
    other = tmp_path / "run.toml"
    other.write_text(swarm.run_file.read_text().replace("seed = 21", "seed = 22"))
    held = refused(2, "another process of yours uses", "coordinator", str(other), "--dir", str(swarm.folder / "run"))
    assert "choose another folder" in held
    assert (swarm.folder / "run" / "run.toml").read_bytes() == before


def test_an_unknown_option_is_wrong_use() -> None:
    done = run_dugnad("peer", "x", "--devise", "cpu")
    assert done.returncode == 2 and "--device" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        pytest.param(("--data", "/nowhere/*.txt"), "--data: nothing matches /nowhere/*.txt", id="data"),
        pytest.param(("--host", "192.0.2.7"), "this machine has no such address", id="a host of another machine"),
        pytest.param(("--announce", "a:b:c"), "--announce a:b:c is no address", id="announce"),
        pytest.param(("--device", "tpu"), "there is no device 'tpu'", id="device"),
        pytest.param(("--client-mode", "--role", "auxiliary"), "an auxiliary peer in client mode", id="roles"),
    ],
)
def test_what_is_wrong_without_the_run_is_refused_at_once(options: tuple[str, ...], cause: str) -> None:
    away = Ticket(("192.0.2.1",), 29100, bytes(32), bytes(16))  # nobody answers there, and nobody is asked
    began = processor_s()
    refused(2, cause, "peer", str(away), *options)
    assert processor_s() - began < AT_ONCE_S


def test_a_device_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    away = Ticket(("192.0.2.1",), 29100, bytes(32), bytes(16))
    refused(2, "device 'cuda:99' cannot be used", "peer", str(away), "--device", "cuda:99", "--home", str(tmp_path / "home"))
    assert not (tmp_path / "home").exists()


def test_the_ticket_is_nobody_elses_to_read(swarm: Swarm) -> None:
    file = swarm.folder / "run" / "ticket.txt"
    assert file.stat().st_mode & 0o077 == 0
    secret = swarm.ticket.removeprefix("dugnad1-")[:60]
    children = psutil.Process(swarm.coordinator.pid).children(recursive=True)
    assert children and not any(secret in word for child in children for word in child.cmdline())
    wait_until(lambda: swarm.coordinator.events("peer_joined"), "the auxiliary peer")
    seen = run_dugnad("status", f"@{file}", "--json")
    assert seen.returncode == 0, seen.stderr


def test_the_version_is_told_both_ways() -> None:
    assert run_dugnad("--version").stdout == run_dugnad("version").stdout != ""


def test_an_invite_admits_while_the_run_goes_on_and_whoever_comes_too_late_is_told_why(swarm: Swarm, tmp_path: Path) -> None:
    run = (str(swarm.run_file), "--dir", str(swarm.folder / "run"))
    line = run_dugnad("coordinator", "invite", *run, "--name", "once", "--uses", "1").stdout.strip()
    ticket = line.removeprefix("dugnad peer ")
    admitted = swarm.enrol(ticket).credentials.peer_id
    refused(2, "the invite 'once' was used 1 times", "peer", ticket, *OWN, "--home", str(tmp_path / "late"))
    listed = run_dugnad("coordinator", "peers", *run).stdout
    assert "once" in listed and admitted in listed
