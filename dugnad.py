"""The `dugnad` command: puts the volunteer's and the organiser's commands under one name."""

from __future__ import annotations
