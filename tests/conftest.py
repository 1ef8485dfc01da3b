"""Deterministic by default: Hypothesis draws the same examples in every run.

`HYPOTHESIS_PROFILE=explore` draws fresh ones, many more of them, and remembers what failed.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
