"""Since when nobody has used this computer: where the system tells."""

from __future__ import annotations

import contextlib
import ctypes
import re
import subprocess
import sys
import time

ANSWER_S = 2.0


def untouched_s() -> float | None:
    """Seconds since somebody last used keyboard, mouse or a terminal of this computer; None where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, AttributeError, subprocess.SubprocessError):
        if sys.platform == "win32":
            return _windows_s()
        if sys.platform == "darwin":
            return _mac_s(_said("ioreg", "-c", "IOHIDSystem", "-d", "4"))
        return _logind_s(_said("loginctl", "show-seat", "seat0", "-p", "IdleHint", "-p", "IdleSinceHint"), time.time())
    return None


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=True).stdout


def _logind_s(said: str, now: float) -> float | None:
    """systemd's seat: its sessions say when they turn idle, the desktop's as well as terminals'."""
    hints = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    if hints.get("IdleHint") == "no":
        return 0.0
    since_us = int(hints.get("IdleSinceHint", "0"))
    return max(0.0, now - since_us / 1e6) if hints.get("IdleHint") == "yes" else None


def _mac_s(said: str) -> float | None:
    found = re.search(r'"HIDIdleTime"\s*=\s*(\d+)', said)
    return int(found[1]) / 1e9 if found is not None else None


def _windows_s() -> float:
    class LastInput(ctypes.Structure):
        _fields_ = [("size", ctypes.c_uint), ("tick_ms", ctypes.c_uint)]

    windows = ctypes.windll  # type: ignore[attr-defined,unused-ignore]  # there alone
    last = LastInput(ctypes.sizeof(LastInput), 0)
    windows.user32.GetLastInputInfo(ctypes.byref(last))
    return float((windows.kernel32.GetTickCount() - last.tick_ms) & 0xFFFFFFFF) / 1e3
