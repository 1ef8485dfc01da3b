"""One small Ray for all tests of this folder, shut down at the end."""

from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="session")
def running_ray() -> Iterator[None]:
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20
    )
    yield
    ray.shutdown()
