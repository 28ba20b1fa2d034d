"""Every stage on two and on four nodes, with cohorts and runs on S3: the same bits as on one node.

The nodes are network namespaces with a raylet each (`tests.nodes`); the jobs are those of
`benchmarks.fault_stages`, each in a process of its own.
"""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import faults
from benchmarks.fault_stages import STAGES
from benchmarks.faults import Bench
from tests import nodes

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(nodes.why_not()), reason=nodes.why_not()),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with faults.bench(4, tmp_path_factory.mktemp("inputs")) as made:
        yield made


def run(bench: Bench, stage: str, out: str, *more: object) -> dict[str, Any]:
    """Run a stage's job and return what is whole at its output."""
    url = f"s3://{nodes.BUCKET}/{out}-{stage}"
    bench.ask("lay_out", stage, bench.cache, url)
    command = (sys.executable, *STAGES[stage].command(url), *more)
    bench.net.start(*command, **bench.net.joined).must(400)
    whole: dict[str, Any] = bench.ask("whole", stage, url)
    return whole


@pytest.fixture(scope="module")
def alone(bench: Bench) -> dict[str, Any]:
    """What one node makes of everything."""
    bench.net.cluster([4])
    made = {stage: run(bench, stage, "alone") for stage in STAGES}
    made["fit by four"] = run(bench, "fit", "alone-by-four", "--scale.num-workers", 4)
    bench.net.stop_cluster()
    return made


@pytest.mark.parametrize("num_nodes", [2, 4])
def test_every_stage_gives_the_bits_of_one_node(
    bench: Bench, alone: dict[str, Any], num_nodes: int
) -> None:
    net = bench.net
    # A worker of 0.75 CPUs fits once on each node.
    net.cluster([1] * num_nodes)
    try:
        for stage in STAGES:
            before = len(net.requests())
            by_four = num_nodes == 4 and stage == "fit"
            more = ("--scale.num-workers", 4) if by_four else ()
            made = run(bench, stage, f"by-{num_nodes}", *more)
            assert made == alone["fit by four" if by_four else stage], stage
            assert made, stage
            if stage != "tune":
                # Four trials take two nodes; everything else takes all that there are.
                asked = {line.split()[1] for line in net.requests()[before:]}
                assert asked == {net.address(node) for node in range(num_nodes)}, stage
    finally:
        net.stop_cluster()
