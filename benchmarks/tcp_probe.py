"""One TCP stream, to see what a line carries: `ADDRESS` receives and says how fast; `ADDRESS PORT SECONDS` sends."""

from __future__ import annotations

import socket
import sys
import time

CHUNK = 1 << 16
SETTLE_S = 0.5  # the burst that a shaper lets through at first, and TCP's start


def receive(address: str) -> None:
    with socket.create_server((address, 0)) as server:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
    first = time.monotonic()
    counted, since, last = 0, 0.0, first
    with connection:
        while data := connection.recv(CHUNK):
            last = time.monotonic()
            if last - first < SETTLE_S:
                since = last
            else:
                counted += len(data)
    print(counted * 8 / 1e6 / (last - since), flush=True)


def send(address: str, port: int, seconds: float) -> None:
    data = bytes(CHUNK)
    with socket.create_connection((address, port)) as connection:
        end = time.monotonic() + seconds + SETTLE_S
        while time.monotonic() < end:
            connection.sendall(data)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        receive(sys.argv[1])
    else:
        send(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
