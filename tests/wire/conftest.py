"""Keys are made once; they only identify."""

import pytest

from tests.coordinator.federation import Enrolled


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Enrolled:
    return Enrolled.create(tmp_path_factory.mktemp("federation"))
