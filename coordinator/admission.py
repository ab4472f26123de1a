"""Admission: whoever shows the ticket's secret gets a certificate, the run's description and its files."""

from __future__ import annotations

import itertools
import urllib.parse
from collections.abc import AsyncIterator, Callable
from typing import Any

from coordinator.genesis import RunFolder
from coordinator.invites import Invites
from protocols.ban_list import SignedBanList
from protocols.errors import BadMessageError, TicketError
from protocols.identity import requester
from protocols.observations import Evaluation
from protocols.reasons import Reason
from protocols.round.records import Candidate, Standing
from protocols.tasks.assets import read_asset
from protocols.transport.announcements import Announcement, read_announcement
from protocols.transport.channels import PROTOCOL_VERSION, refuse
from protocols.transport.enrolling import MAX_NAMED
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import to_wire
from protocols.wire.dugnad_pb2_grpc import EnrolmentServicer

_PART_BYTES = 1 << 20
MAX_BOOTSTRAP_PEERS = 32


class EnrolmentService(EnrolmentServicer):  # type: ignore[misc]  # generated without types
    """`discovery` and `peers` give what is known at each enrolment; `announced` is told where peers say they are;
    `news` gives the newest evaluation and the names of peers, `standing` where the coordinator's own auxiliary peer stands,
    `bans` the newest ban list."""

    def __init__(
        self,
        folder: RunFolder,
        invites: Invites,
        discovery: Callable[[], tuple[str, ...]],
        peers: Callable[[], list[Candidate]],
        announced: Callable[[Announcement], None],
        news: Callable[[], tuple[Evaluation | None, dict[str, str]]],
        standing: Callable[[], Standing | None],
        bans: Callable[[], SignedBanList],
    ) -> None:
        self._folder = folder
        self._invites = invites
        self._run_toml = folder.spec.to_toml()
        self._discovery = discovery
        self._peers = peers
        self._announced = announced
        self._news = news
        self._standing = standing
        self._bans = bans

    async def Enrol(self, request: pb.EnrolRequest, context: Any) -> pb.EnrolReply:
        if request.protocol != PROTOCOL_VERSION:
            await refuse(context, Reason.OTHER_VERSION, f"protocol {PROTOCOL_VERSION}, this program speaks {request.protocol}")
        try:
            peer = requester(request.request)
            await self._refuse_banned(peer, context)
            invite = self._invites.admit(request.secret, peer, _address(context))
            certificate = self._folder.authority.admit(request.request, invite)
        except (BadMessageError, TicketError) as error:
            await refuse(context, Reason.BAD_TICKET, str(error))
        return pb.EnrolReply(
            certificate=certificate,
            run_toml=self._run_toml,
            genesis=to_wire(self._folder.genesis),
            discovery=self._discovery(),
            peers=self._some_peers(),
            standing=self._known_standing(),
        )

    async def Asset(self, request: pb.AssetRequest, context: Any) -> AsyncIterator[pb.AssetPart]:
        try:
            self._invites.check(request.secret)
        except TicketError as error:
            await refuse(context, Reason.BAD_TICKET, str(error))
        try:
            content = read_asset(self._folder.spec, self._folder.path, request.name)
        except BadMessageError as error:
            await refuse(context, Reason.NOT_A_MEMBER, str(error))
        for at in range(0, len(content), _PART_BYTES):
            yield pb.AssetPart(data=content[at : at + _PART_BYTES])

    async def Announce(self, request: pb.SignedAnnouncement, context: Any) -> pb.AnnounceReply:
        try:
            announcement = read_announcement(request.SerializeToString(), self._folder.authority.pem)
            await self._refuse_banned(announcement.peer, context)
            self._announced(announcement)
        except BadMessageError as error:
            await refuse(context, Reason.NOT_A_MEMBER, str(error))
        held_out, names = self._news()
        some = dict(itertools.islice(names.items(), MAX_NAMED))
        evaluation = to_wire(held_out) if held_out else None
        bans = self._bans()
        return pb.AnnounceReply(
            peers=self._some_peers(),
            held_out=evaluation,
            names=some,
            standing=self._known_standing(),
            certificate=self._folder.authority.renewed(request.certificate),
            bans=to_wire(bans) if bans.bans.version > request.bans_version else None,
        )

    async def _refuse_banned(self, peer: str, context: Any) -> None:
        if peer in self._invites.banned:
            await refuse(context, Reason.BANNED, "the organiser does not let this peer take part now")

    def _known_standing(self) -> pb.Standing | None:
        standing = self._standing()
        return to_wire(standing) if standing is not None else None

    def _some_peers(self) -> list[pb.Candidate]:
        return [to_wire(peer) for peer in self._peers()][:MAX_BOOTSTRAP_PEERS]


def _address(context: Any) -> str:
    """Where the caller is, without its port."""
    kind, _, address = urllib.parse.unquote(context.peer()).partition(":")
    return address.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else kind
