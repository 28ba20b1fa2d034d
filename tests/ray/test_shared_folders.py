"""A folder of one node alone is refused where tasks run on several; a shared one is taken."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_cohorts import write_healthy
from tiny_scans import write_bids

from tests import nodes
from tests.nodes import BIN, HEAD, Network
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(bool(nodes.why_not()), reason=nodes.why_not()),
]


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    """Two nodes; what lies in `private` the second one does not see."""
    with nodes.network(2) as made:
        private = made.folder / "private"
        private.mkdir()
        made.head(2)
        wait_until(lambda: made.cpus()[0] == 2, 300, "the head of the cluster")
        join = (
            f"mount -t tmpfs tmpfs {private} && exec {BIN}/ray start --block --num-cpus=2 "
            f"--address={HEAD}:6379 --node-ip-address={made.address(1)} "
            "--object-store-memory=100000000"
        )
        made.start("unshare", "--mount", "sh", "-c", join, node=1)
        wait_until(lambda: made.cpus()[0] == 4, 300, "the second node")
        yield made


def run(net: Network, job: str, *args: object) -> tuple[int, str]:
    started = net.start("python", f"jobs/{job}.py", *args, **net.joined)
    return started.process.wait(300), started.log.read_text()


def test_a_private_cohort_is_refused(net: Network) -> None:
    cohort = write_healthy(net.folder / "private", name="hidden")
    out = net.folder / "run-of-hidden"
    code, output = run(net, "train", "PCA-4", "--cohort", cohort.url, "--out", out)
    assert code == 1
    assert f"{cohort.url}/zarr.json: node {net.address(1)} of the cluster lacks it" in output
    assert "NFS" in output
    assert "Traceback" not in output


def test_a_private_folder_for_results_is_refused(net: Network) -> None:
    scans = write_bids(net.folder / "shared-scans", 4)
    out = net.folder / "private" / "made.zarr"
    tiny = ("--min-brain-ml", 0.1, "--shape", 13, 14, 12)
    code, output = run(net, "prepare", "bids", scans, "--out", out, *tiny)
    assert code == 1
    assert f"{out}: node {net.address(1)} of the cluster does not see it" in output
    assert not list(Path(out).glob(".shared.*"))


def test_copies_on_all_nodes_are_as_good_as_a_shared_folder(net: Network) -> None:
    cohort = write_healthy(net.folder, name="copied")
    private = net.folder / "private" / "copied.zarr"
    shutil.copytree(cohort.url, private)
    holder = next(p for p in net.processes("ray", "start", net.address(1)))
    inside = Path(f"/proc/{holder.pid}/root{private}")
    shutil.copytree(cohort.url, inside)
    run_url = net.folder / "run-of-copied"
    code, output = run(net, "train", "PCA-4", "--cohort", private, "--out", run_url)
    assert code == 0, output
    (inside / "zarr.json").write_text("{}")
    code, output = run(net, "train", "PCA-5", "--cohort", private, "--out", f"{run_url}-2")
    assert code == 1
    assert "has another version" in output
