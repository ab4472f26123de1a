"""The swarm at one instant, drawn for a terminal: its batch, its speed, and a row for each peer."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from coordinator.swarm_view import SwarmView
from protocols.host.terminal import batch_bar, labelled, plural, printable, rate, short_id, stacked, time_left
from protocols.observations import PeerView

WIDE = 84  # columns from which each property of a peer gets a column of its own
NARROW = 60  # columns below which a peer's name, speed and state have to do
_STATE_STYLES = {"training": "green", "averaging": "cyan", "catching up": "yellow", "silent": "red"}


def render_view(view: SwarmView, width: int) -> RenderableType:
    """The swarm at one instant, as `dugnad status` prints it."""
    rows: list[tuple[str, RenderableType]] = [
        ("run", Text.assemble((printable(view.run, 32), "bold"), " · ", (epoch_text(view), "bold cyan"))),
        ("batch", batch_bar(view.samples, view.target_batch_size)),
        ("swarm", swarm_line(view, view.committed_samples_per_second, view.left_s)),
        ("loss", Text("not told" if view.loss is None else f"{view.loss:.3f} at the newest epoch")),
    ]
    rows += [("problem", Text(printable(problem, 200), style="red")) for problem in view.problems]
    return stacked([labelled(rows), "", peer_table(view.peers, width, len(view.peers) + 1)])


def epoch_text(view: SwarmView) -> str:
    return f"epoch {view.epoch:,}" + (f" of {view.max_epochs:,}" if view.max_epochs is not None else "")


def swarm_line(view: SwarmView, pace: float | None = None, left_s: float | None = None) -> Text:
    """`pace`: committed samples per second, where that is known."""
    contributors = sum(peer.role == "contributor" and peer.state != "silent" for peer in view.peers)
    if not contributors:
        return Text("waiting for volunteers: send them the line with the ticket", style="yellow")
    # The most telling first: a narrow terminal cuts the end.
    could = f"{rate(view.samples_per_second)} samples/s"
    parts = [plural(contributors, "contributor"), f"computing {could}" if pace is None else f"{rate(pace)} samples/s"]
    parts.append(time_left(left_s))
    parts.append(f"{view.total_samples:,} samples in all")
    return Text(" · ".join(part for part in parts if part))


def peer_table(peers: tuple[PeerView, ...], width: int, room: int) -> RenderableType:
    if not peers:
        return Text("no peer yet: send the ticket to somebody", style="dim")
    wide, narrow = width >= WIDE, width < NARROW
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("", width=1)
    table.add_column("peer", ratio=3, no_wrap=True, overflow="ellipsis")
    if not narrow:
        table.add_column("role", min_width=11, no_wrap=True)
    if wide:
        table.add_column("link", min_width=11, no_wrap=True)
    if not narrow:
        table.add_column("samples", justify="right", no_wrap=True)
    table.add_column("samples/s" if wide else "per s", justify="right", no_wrap=True)
    if wide:
        table.add_column("epoch", justify="right", no_wrap=True)
    table.add_column("state", min_width=12, no_wrap=True)
    ordered = sorted(peers, key=lambda peer: (not peer.is_leader, peer.role == "auxiliary", peer.name, peer.peer))
    shown = ordered if len(ordered) <= room else ordered[: room - 1]
    for peer in shown:
        link = "reachable" if peer.reachable else "client-mode"
        auxiliary = peer.role == "auxiliary"
        role = peer.role if wide or auxiliary or peer.reachable else link
        style = _STATE_STYLES.get(peer.state, "")
        cells = [
            Text("★" if peer.is_leader else "", style="yellow"),
            Text.assemble(printable(peer.name, 24) or "peer", " ", (short_id(peer.peer), "dim")),
            *([Text(role, style="dim" if auxiliary else "")] if not narrow else []),
            *([Text(link, style="" if peer.reachable else "dim")] if wide else []),
            *([Text("–" if auxiliary else f"{peer.samples:,}")] if not narrow else []),
            Text("–" if auxiliary else rate(peer.samples_per_second)),
            *([Text(f"{peer.epoch:,}")] if wide else []),
            Text(("○ " if peer.state == "silent" else "● ") + printable(peer.state, 16), style=style),
        ]
        table.add_row(*cells)
    if len(shown) < len(ordered):
        table.add_row("", Text(f"… and {len(ordered) - len(shown):,} more", style="dim"))
    return table
