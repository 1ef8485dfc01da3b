"""What Flower's runtime sets in the process of a ServerApp, and tenants in folders."""

from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

from tests.stacks.flower.local import Federation

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.create(tmp_path)
