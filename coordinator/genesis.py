"""The run's folder when the coordinator starts: made once, read again at every later start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coordinator.checkpoints.store import Checkpoints
from protocols.errors import DiskError, UsageError
from protocols.host.files import write_durably
from protocols.identity import Authority, Credentials, Key, Ticket
from protocols.optimization import build_optimizer, build_scheduler, build_state_optimizer
from protocols.run_spec import RunSpec
from protocols.snapshot.format import StateHeader, capture, parameters_sha256
from protocols.tasks.registry import checked, initial_model, prepare
from protocols.transport.enrolling import Genesis


@dataclass(frozen=True)
class RunFolder:
    """`snapshot` is the file to start an auxiliary peer from: the newest whole checkpoint's, or the genesis."""

    path: Path
    spec: RunSpec
    authority: Authority
    credentials: Credentials
    secret: bytes
    genesis: Genesis
    snapshot: Path
    resumed: bool


def open_run(author: RunSpec, path: Path, checkpoints: Checkpoints, progress: Callable[[str], None]) -> RunFolder:
    """Raises UsageError when the folder holds another run; SpecError, CorpusError or DiskError from making it."""
    author = checked(author)
    spec = _resolved(author, path, progress)
    identity = path / "identity"
    authority = Authority.load_or_create(identity)
    auxiliary = Key.load_or_create(path / "auxiliary" / "identity.key")
    first = path / "genesis.safetensors"
    if not first.exists():
        progress("Making the first parameters")
        _make_genesis(author, spec, path, auxiliary.peer_id, first)
    genesis = Genesis(auxiliary.peer_id, parameters_sha256(first.read_bytes()))
    newest = checkpoints.latest()
    if newest is not None and newest.facts.run_digest != spec.digest:
        raise UsageError(
            f"{newest.path} is a checkpoint of another run", remedy="Choose another folder with --dir, or another run.name."
        )
    return RunFolder(
        path=path,
        spec=spec,
        authority=authority,
        credentials=authority.coordinator_credentials(Key.load_or_create(identity / "coordinator.key")),
        secret=_load_or_create_secret(identity / "ticket.secret"),
        genesis=genesis,
        snapshot=newest.snapshot_path if newest is not None else first,
        resumed=newest is not None,
    )


def _load_or_create_secret(path: Path) -> bytes:
    """The ticket's secret, kept so that a ticket outlives the coordinator's process."""
    if not path.exists():
        write_durably(path, Ticket.new_secret().hex().encode(), mode=0o600)
    return bytes.fromhex(path.read_text())


def _resolved(author: RunSpec, path: Path, progress: Callable[[str], None]) -> RunSpec:
    """The spec as peers see it, kept in the folder together with the digest of the author's spec that it was made from."""
    resolved_file, digest_file = path / "run.toml", path / "author.sha256"
    if resolved_file.exists() and digest_file.exists():
        if digest_file.read_text().strip() != author.digest:
            raise UsageError(
                f"{path} holds a run that was started with another run file: a run's spec never changes",
                remedy="Restore that file, or choose another folder with --dir to start a new run.",
            )
        return RunSpec.from_toml(resolved_file.read_text(encoding="utf-8"), folder=author.folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot make the run's folder {path}: {error.strerror}", remedy="Choose another with --dir.") from error
    spec = prepare(author, path, progress)
    write_durably(resolved_file, spec.to_toml().encode())
    write_durably(digest_file, author.digest.encode())
    return spec


def _make_genesis(author: RunSpec, spec: RunSpec, path: Path, leader: str, file: Path) -> None:
    model = initial_model(author, spec, path)
    optimizer = build_state_optimizer(spec, model)
    schedule = build_scheduler(spec, build_optimizer(spec, model))

    def snapshot(lineage: str) -> bytes:
        header = StateHeader(spec.digest, epoch=0, lineage=lineage, samples=0, commit="", scheduler=schedule.state_dict())
        return capture(model, optimizer, header)

    genesis = Genesis(leader, parameters_sha256(snapshot("")))
    write_durably(file, snapshot(genesis.tip(spec.digest, spec.averaging.first_codec).lineage))
