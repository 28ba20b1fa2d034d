"""One local Ray for all tests that need one."""

import os
from collections.abc import Iterator

import pytest

from tests import s3_server
from uadray import cluster

_ENVIRONMENT = {
    # A machine that runs tests is busy: threads that wait for each other cost more than they give.
    "OMP_NUM_THREADS": "1",
    # Ray Train looks after its workers so often that a group starts and ends seconds sooner.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    **cluster.KEEP_WORKERS,
}


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of 4 logical CPUs; started before `cluster.connect`, which then joins it."""
    os.environ.update(_ENVIRONMENT)
    # Processes of the cluster know what it was started with.
    s3_server.set_environment()
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
