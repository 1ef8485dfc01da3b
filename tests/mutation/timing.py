"""A pytest plugin: writes how long each test that passed took to the file that $TIMING names."""

import json
import os
from pathlib import Path

import pytest

_seconds: dict[str, float] = {}
_failed: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Sums setup, call and teardown."""
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration
    if not report.passed:
        _failed.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The controller of a distributed run sees every report."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        passed = {name: s for name, s in _seconds.items() if name not in _failed}
        Path(os.environ["TIMING"]).write_text(json.dumps(passed))
