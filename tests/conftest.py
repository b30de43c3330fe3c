"""What all tests share: Hypothesis never fails a test because the machine is busy."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("dagrun", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dagrun")
