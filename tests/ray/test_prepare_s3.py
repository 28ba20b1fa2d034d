"""From scans behind S3 to a cohort behind S3, on a server that fails now and then."""

import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import fsspec
import pytest
from tiny_scans import TINY, write_bids

from tests.s3_server import FaultyS3, S3Faults, serve
from uadray import each, files
from uadray.errors import StoreError
from uadray.preparation import ingest
from uadray.preparation.ingest import prepare_cohort
from uadray.preparation.layouts import bids
from uadray.preparation.settings import SplitConfig
from uadray.store import Cohort, verify

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def server(ray_session) -> Iterator[FaultyS3]:
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with serve(int(os.environ["UADRAY_TEST_S3_PORT"])) as (app, _):
        boto3.client("s3").create_bucket(Bucket="data")
        yield app
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def root(server: FaultyS3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_bids(tmp_path_factory.mktemp("s3") / "bïds", 10, lesion=True)
    client = boto3.client("s3")
    for path in folder.rglob("*.nii.gz"):
        client.upload_file(str(path), "data", f"bïds/{path.relative_to(folder)}")
    return folder


def prepare(root: str | Path, url: str | Path, **options) -> Cohort:
    scans = bids(str(root), "T1w")
    return prepare_cohort(scans, str(url), config=TINY, split=SplitConfig(), **options)


@pytest.mark.slow
def test_source_and_target_behind_a_flaky_server(server, root, tmp_path):
    local = prepare(root, tmp_path / "c.zarr")
    server.faults, server.hits = S3Faults(every=25), 0
    try:
        remote = prepare("s3://data/bïds", "s3://data/out/c.zarr")
        assert verify(remote.url) == []
    finally:
        server.faults = S3Faults()
    assert server.hits > 5
    assert remote.fingerprint == local.fingerprint
    assert files.list_names("s3://data/out/c.zarr/rows") == []
    # The same from a local source, and the source elsewhere.
    assert prepare(root, "s3://data/out/d.zarr").fingerprint == local.fingerprint
    assert prepare("s3://data/bïds", tmp_path / "d.zarr").fingerprint == local.fingerprint


def test_a_server_that_goes_down(server, root, monkeypatch):
    url, asked, kept = "s3://data/out/e.zarr", [], set()
    before, add = each.in_tasks, ingest._Shards.add

    def stop(self, row, name):
        add(self, row, name)
        kept.add(row)
        server.faults = S3Faults(down=len(kept) >= 4)

    with monkeypatch.context() as patch:
        patch.setattr(ingest._Shards, "add", stop)
        with pytest.raises(StoreError, match="run the same command again"):
            prepare("s3://data/bïds", url)
    server.faults = S3Faults()

    def spy(work, items, **how):
        asked.extend(item.row for item in items)
        return before(work, items, **how)

    monkeypatch.setattr(each, "in_tasks", spy)
    assert verify(prepare("s3://data/bïds", url).url) == []
    assert len(kept) >= 4
    assert not kept & set(asked)


def test_a_damaged_object_is_mended(server, root, monkeypatch):
    cohort = prepare("s3://data/bïds", "s3://data/out/c.zarr")
    shard = "s3://data/out/c.zarr/lesion/c/0/0/0/0"
    content = bytearray(files.read_bytes(shard))
    content[len(content) // 3] ^= 1
    files.write_bytes(shard, bytes(content))
    assert {row for problem in verify(cohort.url) for row in problem.rows} == set(range(8))
    again = prepare("s3://data/bïds", cohort.url, redo=["damaged"])
    assert again == cohort
    assert verify(again.url) == []


def test_a_bucket_that_is_not_there(server, root):
    with pytest.raises(StoreError, match=r"s3://none/c\.zarr: cannot be .*written"):
        prepare(root, "s3://none/c.zarr")
