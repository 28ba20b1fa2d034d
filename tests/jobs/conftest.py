"""One pass through all jobs, shared by the tests."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from shell import Flow, Shell, run_demo, run_steps


@pytest.fixture(scope="session")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    shell = Shell(folder=tmp_path_factory.mktemp("user"))
    with ThreadPoolExecutor(1) as pool:
        demo = pool.submit(run_demo, shell)
        steps = run_steps(shell)
    return Flow(shell=shell, demo=demo.result(), **steps)
