"""Whether an old certificate is refused at this peer's doors.

A certificate is fresh for a week. The coordinator renews it in the middle of that time, in reply to an announcement. An older one
belongs to a peer that the coordinator did not renew, which is refused, or to one that could not reach it, which is not: training
needs no coordinator. So an old certificate is refused only while the coordinator is there, and has been for so long that all
others are renewed.

TLS cannot do this: gRPC for Python refuses a certificate after its end in any case. So certificates end after a year.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cryptography import x509

from protocols import identity

RENEWED_WITHIN = 168  # parts of the week: an hour
OLD_CERTIFICATE = "the coordinator is there, and has not renewed the certificate of this peer for more than a week"


class Freshness:
    """Of others' certificates, as this process judges it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since 1970, as the coordinator's when it issues."""
        self._clock = clock
        self._there_since: float | None = None  # the coordinator has answered ever since

    def answered(self, by_coordinator: bool) -> None:
        """The coordinator was called, and answered or did not."""
        if not by_coordinator:
            self._there_since = None
        elif self._there_since is None:
            self._there_since = self._clock()

    def refuses(self, certificate: x509.Certificate) -> bool:
        """Whether it is too old now. The coordinator's own never is."""
        now, fresh_s = self._clock(), identity.FRESH.total_seconds()
        if self._there_since is None or now - self._there_since < fresh_s / RENEWED_WITHIN:
            return False
        return now - identity.issued_at(certificate) > fresh_s and not identity.is_coordinators(certificate)
