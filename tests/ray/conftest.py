"""One local Ray for all tests that need one."""

from collections.abc import Iterator

import pytest

from uadray import cluster


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of 4 logical CPUs; started before `cluster.connect`, which then joins it."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=300_000_000,
        include_dashboard=False,
        logging_level="warning",
    )
    cluster.connect()
    yield
    ray.shutdown()
