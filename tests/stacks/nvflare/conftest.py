"""Tenants with folders of their own, for every test that runs whole rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stacks.nvflare.tenants import Federation


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    """Five sites, each with a tenant's folder."""
    return Federation(tmp_path).enrol(monkeypatch)
