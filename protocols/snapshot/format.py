"""The format of a snapshot: the training state to bytes and back, and the manifest that its chunks are checked against.

The bytes are one safetensors file. It has tensors `parameters.<name>` and `optimizer.<name>.<slot>`, and a JSON header with all
that is no tensor (`StateHeader`). Reading safetensors executes nothing, so a hostile donor can at worst send wrong numbers. The
checks of shape, dtype and finiteness here and the digests in the manifest catch those.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from protocols.errors import BadMessageError
from protocols.messages import Manifest

CHUNK_BYTES = 1 << 20

# The values in an optimizer's groups that change as it steps. All others come from the run spec and must be equal.
_MOVING_GROUP_KEYS = frozenset({"lr", "initial_lr", "step"})


@dataclass(frozen=True)
class StateHeader:
    """What a snapshot says about itself."""

    run_digest: str
    epoch: int
    lineage: str
    samples: int  # of the lineage
    commit: str  # the signed commit that led to this state, as the hex of its wire bytes; '' at genesis
    scheduler: dict[str, Any]


def manifest_of(snapshot: bytes, header: StateHeader, chunk_bytes: int = CHUNK_BYTES) -> Manifest:
    """The manifest of a snapshot that is cut into chunks of `chunk_bytes`."""
    view = memoryview(snapshot)
    digests = tuple(hashlib.sha256(view[at : at + chunk_bytes]).digest() for at in range(0, len(snapshot), chunk_bytes))
    return Manifest(header.epoch, header.lineage, len(snapshot), chunk_bytes, digests)


def capture(model: torch.nn.Module, optimizer: torch.optim.Optimizer, header: StateHeader) -> bytes:
    """Serialise parameters, buffers and optimizer slots to a snapshot. The caller must not step meanwhile."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in _unique_tensors(model).items():
        tensors[f"parameters.{name}"] = tensor.detach().to("cpu").contiguous()
    scalars: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{name}.{slot}"] = value.detach().to("cpu").contiguous()
            else:
                scalars.setdefault(name, {})[slot] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    document = {"header": asdict(header), "optimizer_scalars": scalars, "optimizer_groups": groups}
    snapshot: bytes = save_tensors(tensors, metadata={"dugnad": json.dumps(document, sort_keys=True)})
    return snapshot


def read_header(snapshot: bytes) -> StateHeader:
    """Read the header alone. Raises BadMessageError if these bytes are no snapshot."""
    return StateHeader(**_document(snapshot)["header"])


def read_parameters(snapshot: bytes) -> dict[str, torch.Tensor]:
    """Read parameters and buffers by name, as `model.load_state_dict(..., strict=False)` takes them.

    Raises BadMessageError if the snapshot is damaged.
    """
    tensors = _load(snapshot)
    return {name.removeprefix("parameters."): tensor for name, tensor in tensors.items() if name.startswith("parameters.")}


def parameters_sha256(snapshot: bytes) -> str:
    """SHA-256 (hex) of the parameters and buffers alone: their names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(read_parameters(snapshot).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def restore(snapshot: bytes, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> StateHeader:
    """Load a snapshot into model and optimizer, all or nothing.

    Every name, shape, dtype and value is checked before the first write. Raises BadMessageError if the snapshot does not fit the
    model or the optimizer, is truncated, or holds a value that is not finite.
    """
    document = _document(snapshot)
    tensors = _load(snapshot)
    if foreign := [name for name in tensors if not name.startswith(("parameters.", "optimizer."))]:
        raise BadMessageError(f"the snapshot holds something unknown: {foreign[0][:100]!r}")
    wanted = _unique_tensors(model)
    parameters = {name.removeprefix("parameters."): t for name, t in tensors.items() if name.startswith("parameters.")}
    if parameters.keys() != wanted.keys():
        odd = sorted(parameters.keys() ^ wanted.keys())[:3]
        raise BadMessageError(f"the snapshot is of another model (first odd names: {', '.join(odd)})")
    for name, tensor in parameters.items():
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            raise BadMessageError(
                f"the snapshot's {name} is {tuple(tensor.shape)} {tensor.dtype}, not {tuple(wanted[name].shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadMessageError(f"the snapshot's {name} holds a value that is not finite")
    slots = _optimizer_slots(tensors, document["optimizer_scalars"], dict(model.named_parameters()))
    _check_slots(slots, optimizer)
    _check_groups(document["optimizer_groups"], optimizer.param_groups)

    with torch.no_grad():
        for name, tensor in parameters.items():
            wanted[name].copy_(tensor)
    optimizer.state.clear()
    for parameter, values in slots:
        optimizer.state[parameter] = values
    for group, saved in zip(optimizer.param_groups, document["optimizer_groups"], strict=True):
        for key in group.keys() & _MOVING_GROUP_KEYS - saved.keys():
            del group[key]  # a counter that the snapshot's optimizer has not begun
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()})
    return StateHeader(**document["header"])


def _optimizer_slots(
    tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, torch.nn.Parameter]
) -> list[tuple[torch.nn.Parameter, dict[str, Any]]]:
    by_name: dict[str, dict[str, Any]] = {name: dict(values) for name, values in scalars.items()}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            name, slot = key.removeprefix("optimizer.").rsplit(".", 1)
            if not bool(torch.isfinite(tensor).all()):
                raise BadMessageError(f"the snapshot's optimizer slot {slot} of {name} holds a value that is not finite")
            by_name.setdefault(name, {})[slot] = tensor
    unknown = by_name.keys() - parameters.keys()
    if unknown:
        raise BadMessageError(f"the snapshot has optimizer state for unknown parameters (first: {min(unknown)})")
    result: list[tuple[torch.nn.Parameter, dict[str, Any]]] = []
    for name, values in by_name.items():
        parameter = parameters[name]
        placed = {}
        for slot, value in values.items():
            if isinstance(value, torch.Tensor) and value.dim() > 0:
                if value.shape != parameter.shape or value.dtype != parameter.dtype:
                    raise BadMessageError(f"the snapshot's optimizer slot {slot} of {name} is {tuple(value.shape)} {value.dtype}")
                value = value.to(parameter.device)
            placed[slot] = value
        result.append((parameter, placed))
    return result


def _check_slots(slots: Sequence[tuple[torch.nn.Parameter, Mapping[str, Any]]], optimizer: torch.optim.Optimizer) -> None:
    """Raise BadMessageError unless all parameters have the same slots. A missing slot would only fail amid the next step."""
    kinds = {frozenset(values) for _, values in slots}
    kinds |= {frozenset(values) for values in optimizer.state.values() if values}
    if len(kinds) > 1:
        raise BadMessageError("the snapshot is of another optimizer (its slots differ)")
    if slots and {id(parameter) for parameter, _ in slots} != {
        id(p) for group in optimizer.param_groups for p in group["params"]
    }:
        raise BadMessageError("the snapshot has optimizer state for some parameters only")


def _check_groups(saved: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> None:
    """Raise BadMessageError unless the saved groups equal our own in all but the values that change as it steps."""
    if len(saved) != len(own):
        raise BadMessageError("the snapshot is of another optimizer (its parameter groups differ)")
    for theirs, ours in zip(saved, own, strict=True):
        fixed = {key: list(value) if isinstance(value, tuple) else value for key, value in ours.items() if key != "params"}
        for key in sorted((theirs.keys() | fixed.keys()) - _MOVING_GROUP_KEYS):
            if key not in theirs or key not in fixed or theirs[key] != fixed[key]:
                raise BadMessageError(f"the snapshot is of another optimizer ({key} differs)")
        for key in theirs.keys() & _MOVING_GROUP_KEYS:
            if not _is_number(theirs[key]) or theirs[key] < 0:
                raise BadMessageError(f"the snapshot's optimizer has {key} {str(theirs[key])[:50]}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _unique_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name. Tied ones appear once, under their first name."""
    seen: set[int] = set()
    unique: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor
    return unique


def _load(snapshot: bytes) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_tensors(snapshot)
        return tensors
    except (SafetensorError, ValueError, KeyError) as error:
        raise BadMessageError(f"the snapshot is damaged: {error}") from error


def _document(snapshot: bytes) -> dict[str, Any]:
    """Read and check the JSON document in a snapshot's header. Raises BadMessageError."""
    # safetensors: a little-endian length of 8 bytes, that many bytes of JSON, then the tensors.
    size = int.from_bytes(snapshot[:8], "little")
    if len(snapshot) < 8 or size > len(snapshot) - 8:
        raise BadMessageError("the snapshot is truncated")
    try:
        metadata = json.loads(snapshot[8 : 8 + size])["__metadata__"]
        document: dict[str, Any] = json.loads(metadata["dugnad"])
        header = StateHeader(**document["header"])
        scalars, groups = document["optimizer_scalars"], document["optimizer_groups"]
        sound = (
            all(isinstance(text, str) for text in (header.run_digest, header.lineage, header.commit))
            and all(isinstance(count, int) and count >= 0 for count in (header.epoch, header.samples))
            and isinstance(header.scheduler, dict)
            and isinstance(groups, list)
            and all(isinstance(group, dict) and "params" not in group for group in groups)
            and all(value is None or _is_number(value) for slots in scalars.values() for value in slots.values())
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadMessageError(f"the snapshot's header cannot be read: {str(error)[:200]}") from error
    if not sound:
        raise BadMessageError("the snapshot's header holds values of the wrong kind")
    return document
