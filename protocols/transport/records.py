"""Asking a peer for the commits that it has on record: which lineage it came by."""

from __future__ import annotations

from protocols.round.records import Candidate, SignedCommit
from protocols.signing import check_signed
from protocols.transport.channels import Channels, parts
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.convert import from_wire
from protocols.wire.dugnad_pb2_grpc import PeerStub

MAX_RECORDS = 4096
ANSWER_S = 10.0


async def fetch_records(channels: Channels, peer: Candidate, after_epoch: int, lineage: str) -> list[SignedCommit]:
    """The commits after `after_epoch` up to `lineage`, oldest first, as far as `peer` has them on record; signatures are checked.

    Raises RemoteError.
    """
    request = pb.ObserveRequest(after_epoch=after_epoch)
    call = PeerStub(channels.to(peer.peer, peer.address)).Observe(request, metadata=channels.metadata, timeout=ANSWER_S)
    found: list[SignedCommit] = []
    standings = 0
    try:
        async for observation in parts(call, f"peer {peer.peer[:8]}"):
            kind = observation.WhichOneof("kind")
            if kind == "committed":
                signed = from_wire(SignedCommit, observation.committed.signed_commit)
                found.append(check_signed(signed, channels.credentials.authority))
            standings += kind == "swarm"
            # The first tells where the peer stands, the second that all records were told and it is the present now.
            if standings > 1 or len(found) == MAX_RECORDS or (found and found[-1].commit.digest == lineage):
                break
    finally:
        call.cancel()
    return found
