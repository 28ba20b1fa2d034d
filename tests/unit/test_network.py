"""Networks of nodes on one machine: who reaches whom, an S3 server that fails, a full disk."""

import itertools
import sys
from collections.abc import Iterator

import psutil
import pytest

from tests import nodes
from tests.nodes import BUCKET, S3_HOST, S3_PORT, Network, S3Faults, network
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(bool(nodes.why_not()), reason=nodes.why_not())

ASK = """
import sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[2], data=b"x" * 9, method=sys.argv[1])
try:
    print(urllib.request.urlopen(request, timeout=float(sys.argv[3])).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError as error:
    print(0)
"""


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network(2, s3=True, disk_mib=1) as made:
        yield made
    wait_until(lambda: not psutil.pid_exists(made.holder), 10, "the end of the namespaces")
    assert not made.folder.exists()


KEYS = itertools.count()


def ask(net: Network, node: int, seconds: float = 60) -> int:
    """Put a new object; the status of the answer, 0 where there is none."""
    url = f"http://{S3_HOST}:{S3_PORT}/{BUCKET}/{next(KEYS)}"
    return int(net.must(sys.executable, "-c", ASK, "PUT", url, seconds, node=node))


def test_a_node_that_is_cut_off_reaches_nobody_until_it_is_mended(net: Network) -> None:
    assert ask(net, 0) == ask(net, 1) == 200
    net.cut(1)
    assert (ask(net, 0), ask(net, 1, seconds=1)) == (200, 0)
    net.mend(1)
    assert ask(net, 1) == 200


def test_the_server_fails_as_often_as_asked(net: Network) -> None:
    before = len(net.requests())
    net.fail_s3(S3Faults(every=3, slow_s=0.01))
    codes = [ask(net, 0) for _ in range(12)]
    net.fail_s3(S3Faults())
    assert codes.count(500) == 2
    lines = [line.split(maxsplit=4)[4] for line in net.requests()[before:]]
    assert lines.count("500") == 2
    assert lines.count("200 slow") == 2
    assert lines.count("200") == 8
    assert [ask(net, 0) for _ in range(3)] == [200] * 3


def test_a_full_disk_takes_nothing_and_keeps_what_it_has(net: Network) -> None:
    write = ("sh", "-c", f"echo something > {net.disk}/$0")
    net.must(*write, "before")
    net.fill_disk()
    with pytest.raises(AssertionError, match=r"I/O error|No space left"):
        net.must(*write, "full", node=1)
    net.empty_disk()
    net.must(*write, "after", node=1)
    assert (net.disk_from_outside / "before").read_text() == "something\n"
    assert (net.disk_from_outside / "after").read_text() == "something\n"
