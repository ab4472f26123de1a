"""Records to protobuf messages and back: field by field, by name, with bounds.

A message that breaks a bound, or a record's own checks, raises BadMessageError.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from protocols.errors import BadMessageError
from protocols.observations import Committed, Failure, Observation, Seen, Swarm
from protocols.reasons import Reason
from protocols.round import member
from protocols.round.records import Hello, Report, SignedCommit
from protocols.wire import dugnad_pb2 as pb

MAX_TEXT = 4096
MAX_REPEATED = 20_000

T = TypeVar("T")


@cache
def _fields(kind: Hashable) -> dict[str, Any]:
    record = typing.cast(Any, kind)
    hints = typing.get_type_hints(record)
    return {field.name: hints[field.name] for field in dataclasses.fields(record)}


def to_wire(record: Any) -> Any:
    """The protobuf message of the same name, filled."""
    message = getattr(pb, type(record).__name__)()
    for name in _fields(typing.cast(Hashable, type(record))):
        value = getattr(record, name)
        if value is None:
            continue
        if isinstance(value, tuple):
            getattr(message, name).extend(to_wire(item) if dataclasses.is_dataclass(item) else item for item in value)
        elif dataclasses.is_dataclass(value):
            getattr(message, name).CopyFrom(to_wire(value))
        else:
            setattr(message, name, value.value if isinstance(value, Reason) else value)
    return message


def from_wire(kind: type[T], message: Message) -> T:
    """The record that `message` describes. Raises BadMessageError."""
    try:
        return kind(**{name: _value(hint, message, name) for name, hint in _fields(typing.cast(Hashable, kind)).items()})
    except (ValueError, TypeError, OverflowError) as error:
        raise BadMessageError(f"{kind.__name__}: {error}") from error


def _value(hint: Any, message: Message, name: str) -> Any:
    value = getattr(message, name)
    optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
    if optional:
        if not message.HasField(name):
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if len(value) > MAX_REPEATED:
            raise BadMessageError(f"{name} has {len(value)} items")
        return tuple(_single(item, element) for element in value)
    if dataclasses.is_dataclass(hint) and not optional and not message.HasField(name):
        raise BadMessageError(f"{name} is missing")
    return _single(hint, value)


def _single(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_wire(typing.cast(type[Any], hint), value)
    if hint is Reason:
        return Reason(value)
    if isinstance(value, str | bytes) and len(value) > MAX_TEXT:
        raise BadMessageError(f"a text of {len(value)} characters")
    return value


def answer_to_wire(answer: member.Answer) -> pb.MemberMessage:
    field = next(name for name, kind in MEMBER_KINDS.items() if kind is type(answer))
    return pb.MemberMessage(**{field: to_wire(answer)})


MEMBER_KINDS: dict[str, type[Any]] = {
    "hello": Hello,
    "report": Report,
    "accept": member.Accept,
    "refuse": member.Refuse,
    "ready": member.Ready,
    "failed": member.Failed,
    "drifted": member.Drifted,
}


OBSERVATION_KINDS: dict[str, type[Observation]] = {
    "swarm": Swarm,
    "committed": Committed,
    "failure": Failure,
    "seen": Seen,
}


def observation_to_wire(observation: Observation) -> pb.Observation:
    field = next(name for name, kind in OBSERVATION_KINDS.items() if kind is type(observation))
    return pb.Observation(**{field: to_wire(observation)})


def observation_from_wire(message: pb.Observation) -> Observation:
    """The record that `message` carries. Raises BadMessageError."""
    field = message.WhichOneof("kind")
    if field is None:
        raise BadMessageError("an observation without content")
    return from_wire(OBSERVATION_KINDS[field], getattr(message, field))


def signed_commit_from_bytes(data: bytes) -> SignedCommit:
    try:
        return from_wire(SignedCommit, pb.SignedCommit.FromString(data))
    except DecodeError as error:
        raise BadMessageError("a signed commit cannot be decoded") from error


def signed_commit_to_bytes(signed: SignedCommit) -> bytes:
    data: bytes = to_wire(signed).SerializeToString(deterministic=True)
    return data
