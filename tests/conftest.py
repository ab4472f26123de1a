"""What all tests share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example takes says nothing on a shared machine; what it finds is printed so that it can be repeated.
settings.register_profile("dugnad", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dugnad")
