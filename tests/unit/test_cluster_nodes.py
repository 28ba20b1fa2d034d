"""What is checked of a cluster's nodes, without a cluster."""

import subprocess
import sys
from pathlib import Path

import pytest

from uadray import cluster
from uadray.errors import StartError, StoreError


def no_nodes() -> list[dict[str, object]]:
    raise AssertionError("the cluster is asked for its nodes")


class TestShared:
    def test_a_url_is_seen_by_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cluster, "_other_nodes", no_nodes)
        cluster.check_shared("s3://bucket/run", "gs://bucket/run")
        cluster.check_readable("s3://bucket/cohort.zarr/zarr.json")

    def test_a_single_node_is_not_asked_and_nothing_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cluster, "_other_nodes", list)
        cluster.check_shared(str(tmp_path / "run"))
        assert list(tmp_path.iterdir()) == []

    def test_what_this_node_lacks_is_left_to_the_reader(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cluster, "_other_nodes", no_nodes)
        cluster.check_readable(str(tmp_path / "absent"))

    def test_the_probe_is_gone_whatever_comes_of_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[str] = []

        def refuse(nodes: object, paths: list[str], *_: object) -> None:
            seen.extend(path.name for path in tmp_path.iterdir())
            raise RuntimeError

        monkeypatch.setattr(cluster, "_other_nodes", lambda: [{"NodeID": "x"}])
        monkeypatch.setattr(cluster, "_refuse_blind", refuse)
        with pytest.raises(RuntimeError):
            cluster.check_shared(str(tmp_path))
        assert len(seen) == 1
        assert seen[0].startswith(".shared.")
        assert list(tmp_path.iterdir()) == []


class TestMark:
    def test_it_tells_versions_apart_by_size_and_both_ends(self, tmp_path: Path) -> None:
        file = tmp_path / "zarr.json"
        content = bytearray(3 * cluster._END_BYTES)
        marks = set()
        for place, value in ((0, 0), (0, 1), (-1, 1)):
            content[place] = value
            file.write_bytes(content)
            marks.add(cluster._mark(str(file)))
        file.write_bytes(content + b"x")
        marks.add(cluster._mark(f"file://{file}"))
        assert len(marks) == 4

    def test_what_is_absent_has_none(self, tmp_path: Path) -> None:
        assert cluster._mark(str(tmp_path / "absent")) == ""
        assert cluster._mark(str(tmp_path)) == ""


class TestRoom:
    def test_without_waiting_nothing_is_asked_for(self) -> None:
        assert cluster.wait_for_room([{"CPU": 1}], lambda: True, 0)
        assert not cluster.wait_for_room([{"CPU": 1}], lambda: False, 0)
        assert cluster.wait_for_room([{"CPU": 1}], lambda: True, 5)

    def test_the_wish_is_taken_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ray.autoscaler import sdk

        wishes: list[list[dict[str, float]]] = []
        monkeypatch.setattr(sdk, "request_resources", lambda bundles: wishes.append(bundles))
        monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)
        answers = iter([False, False, True, True])
        bundles = [{"CPU": 0.75, "GPU": 1}] * 2
        assert cluster.wait_for_room(bundles, lambda: next(answers), 5)
        assert wishes == [bundles, []]
        assert not cluster.wait_for_room(bundles, lambda: False, 1e-6)
        assert wishes[2:] == [bundles, []]


def test_an_error_of_ours_comes_out_of_rays_wrapping_without_its_advice() -> None:
    class OfATask(Exception):
        cause = StoreError(
            "/x: no space\nFailed to apply UDF transform after 1/1 attempts.\nTo ..."
        )

    with pytest.raises(StoreError) as raised, cluster.plain_errors():
        raise OfATask
    assert str(raised.value) == "/x: no space"


def test_a_ray_that_came_too_late_is_started_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = "import time; time.sleep(100)"
    other = subprocess.Popen(["sleep", "100"])
    others: list[subprocess.Popen] = []
    late: list[subprocess.Popen] = []

    def init(**_: object) -> None:
        if not late:
            late.append(subprocess.Popen([sys.executable, "-c", waits, "/ray/gcs_server"]))
            others.append(subprocess.Popen(["sleep", "100"]))  # of another thread
            raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    try:
        cluster.connect()
        assert len(late) == 1
        assert late[0].wait(10) is not None
        assert other.poll() is None
        assert others[0].poll() is None
    finally:
        for process in (other, *others, *late):
            process.kill()


def test_a_ray_that_twice_does_not_start_in_time_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(StartError, match="busy with other work"):
        cluster.connect()
