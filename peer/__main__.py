"""`python -m peer TICKET`: how a coordinator starts the auxiliary peer beside it."""

from peer.cli import peer
from protocols.host.command import run_command

if __name__ == "__main__":
    run_command(peer)
