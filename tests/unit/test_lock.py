"""One job at a time on an output: living holders are named, dead ones passed."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tiny_cohorts import write_healthy, write_lesioned
from tiny_models import (
    finished_run,
    freeze_threshold,
    healthy_cohort,
    scan_of,
    write_head,
)

import uadray
from tests.s3_server import serve_bucket
from tests.waiting import wait_until
from uadray import files, lock
from uadray.config import experiment
from uadray.errors import LockedError
from uadray.evaluation.job import evaluate
from uadray.preparation.ingest import prepare_cohort
from uadray.preparation.settings import PrepareConfig, SplitConfig
from uadray.runs.folder import Run
from uadray.store import open_cohort
from uadray.train.job import fit
from uadray.tune.sweep import fit_trials

HOLD = """
import sys, time
from uadray.lock import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with serve_bucket("outputs"):
        yield "s3://outputs"


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "out")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SETTLE_S", 0.1)
    monkeypatch.setattr(lock, "_LOOK_S", 0.05)


@pytest.fixture
def holder(folder: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def elsewhere(folder: str, **changes: object) -> lock.Holder:
    """Leave the lock of a job on another machine."""
    one = replace(lock.Holder.here(), machine="other", host="node7", **changes)  # type: ignore[arg-type]
    files.write_bytes(files.join(folder, files.LOCK), one.encode())
    return one


def test_the_lock_is_gone_after_the_block(folder: str) -> None:
    with lock.hold(folder):
        assert files.list_names(folder) == [files.LOCK]
        assert files.is_empty(folder)
    assert files.list_names(folder) == []


def test_it_is_gone_after_an_error(folder: str) -> None:
    with pytest.raises(ZeroDivisionError), lock.hold(folder):
        raise ZeroDivisionError
    assert files.list_names(folder) == []


def test_a_living_holder_is_named(folder: str, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(LockedError, match=f"process {holder.pid} on .* has been writing it"):
        lock.hold(folder).__enter__()
    assert files.exists(files.join(folder, files.LOCK))


def test_what_a_killed_holder_left_is_passed_at_once(
    folder: str, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder.kill()
    wait_until(lambda: psutil.Process(holder.pid).status() == psutil.STATUS_ZOMBIE)
    monkeypatch.setattr(lock, "LEASE_S", 1e9)
    with lock.hold(folder):
        pass
    assert files.list_names(folder) == []


def test_a_process_of_the_same_number_is_no_holder(folder: str) -> None:
    """Numbers of processes are used again."""
    one = replace(lock.Holder.here(), started=lock.Holder.here().started - 1000)
    files.write_bytes(files.join(folder, files.LOCK), one.encode())
    with lock.hold(folder):
        pass


def test_a_thread_of_the_same_process_is_kept_off(folder: str) -> None:
    with lock.hold(folder), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        lock.hold(folder).__enter__()


def test_what_this_process_could_not_give_back_is_passed(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as away:

        def refuse(url: str) -> None:
            raise OSError("the store is away")

        with lock.hold(folder):
            away.setattr(files, "remove_file", refuse)
    assert files.list_names(folder) == [files.LOCK]
    with lock.hold(folder):
        pass
    assert files.list_names(folder) == []


def test_another_machine_that_renews_is_alive(folder: str) -> None:
    one = elsewhere(folder)
    renewed = threading.Event()

    def renew() -> None:
        count = 0
        while not renewed.wait(0.02):
            count += 1
            files.write_bytes(files.join(folder, files.LOCK), replace(one, renewals=count).encode())

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(LockedError, match="on node7"):
            lock.hold(folder).__enter__()
    finally:
        renewed.set()
        thread.join()


@pytest.mark.parametrize("pid", [-5, 2**40])
def test_a_number_that_no_process_can_have_is_no_holder(folder: str, pid: int) -> None:
    one = replace(lock.Holder.here(), pid=pid)
    files.write_bytes(files.join(folder, files.LOCK), one.encode())
    with lock.hold(folder):
        pass


@pytest.mark.parametrize("content", [b"", b'{"mark": ', b'{"mark": "x", "pid": "y"}', None])
def test_another_machine_that_does_not_renew_is_dead(
    folder: str, content: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(folder)
    if content is not None:
        files.write_bytes(files.join(folder, files.LOCK), content)
    monkeypatch.setattr(lock, "LEASE_S", 0.3)
    with lock.hold(folder):
        held = json.loads(files.read_bytes(files.join(folder, files.LOCK)))
        assert held["pid"] == os.getpid()


def test_a_lock_is_renewed(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEWED_S", 0.02)
    place = files.join(folder, files.LOCK)
    with lock.hold(folder):
        seen = lock._look(place)
        assert seen is not None
        while (now := lock._look(place)) is not None and now.renewed == seen.renewed:
            pass
        assert now is not None
        assert now.holder is not None
        assert seen.holder is not None
        assert now.holder.mark == seen.holder.mark


def test_of_many_that_find_a_dead_lock_one_gets_it(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SETTLE_S", 2.0)
    monkeypatch.setattr(lock, "RENEWED_S", 1e6)
    files.write_bytes(
        files.join(folder, files.LOCK), replace(lock.Holder.here(), started=0.0).encode()
    )
    inside, most, refused = [], [], []
    start, leave = threading.Barrier(8), threading.Event()

    def compete() -> None:
        start.wait()
        try:
            with lock.hold(folder):
                inside.append(1)
                most.append(len(inside))
                leave.wait()
                inside.pop()
        except LockedError:
            refused.append(1)
            if len(refused) == 7:
                leave.set()

    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    leave.set()
    assert most == [1]


def test_wherever_one_stalls_a_dead_lock_is_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SETTLE_S", 0.0)  # nothing rests on it where folders can be locked
    for name in ("link", "rename", "replace"):
        monkeypatch.setattr(lock.os, name, _slow(getattr(os, name)))
    place = tmp_path / files.LOCK
    for _ in range(20):
        place.write_bytes(replace(lock.Holder.here(), started=0.0).encode())
        look, waits = lock._living, iter(np.linspace(0, 0.1, 8))
        together = threading.Barrier(8)

        def think(place: str, look: Any = look, waits: Any = waits, all_: Any = together) -> Any:
            seen = look(place)
            all_.wait()  # all of them have found it dead
            time.sleep(next(waits))
            return seen

        monkeypatch.setattr(lock, "_living", think)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: _outcome(lock._take, str(place)), range(8)))
        monkeypatch.setattr(lock, "_living", look)
        assert sum(isinstance(one, lock.Holder) for one in results) == 1
        assert sum(isinstance(one, LockedError) for one in results) == 7
        assert [p.name for p in tmp_path.iterdir()] == [files.LOCK]
        place.unlink()


def _slow(call: Callable[..., Any]) -> Callable[..., Any]:
    def stall(*arguments: object) -> Any:
        time.sleep(0.03)
        return call(*arguments)

    return stall


def _outcome(call: Callable[..., Any], *arguments: object) -> Any:
    try:
        return call(*arguments)
    except LockedError as error:
        return error


def test_who_lost_its_lock_while_it_stood_still_ends(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "RENEWED_S", 0.02)

    def stand_still() -> None:
        with lock.hold(folder):
            elsewhere(folder)
            threading.Event().wait(60)

    with pytest.raises(KeyboardInterrupt):
        stand_still()
    assert "another job took this output" in capsys.readouterr().err
    assert files.exists(files.join(folder, files.LOCK)), "the other one's lock stays"


def test_a_folder_that_cannot_be_written_is_not_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(place: str, holder: lock.Holder) -> bool:
        raise PermissionError(13, "Permission denied", place)

    monkeypatch.setattr(lock, "_create", refuse)
    with lock.hold(str(tmp_path)):
        pass


def test_several_are_held_or_none(tmp_path: Path) -> None:
    first, second = str(tmp_path / "a"), str(tmp_path / "b")
    with lock.hold(second), pytest.raises(LockedError):
        lock.hold(first, second).__enter__()
    assert files.list_names(first) == []


class TestVerbs:
    """Each that writes an output keeps others off it, and starts no Ray before it can."""

    @pytest.fixture(scope="class")
    def home(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        home = tmp_path_factory.mktemp("home")
        run = finished_run(home / "run", healthy_cohort(home, 8), "MeanImage")
        finished_run(home / "tiny", write_healthy(home / "cohorts"), "MeanImage")
        write_lesioned(home / "cohorts", name="lesioned")
        freeze_threshold(run, 0.2)
        write_head(home / "p_T1w.nii.gz", 3)
        return home

    @pytest.mark.parametrize("verb", ["prepare", "fit", "sweep", "evaluate", "predict", "export"])
    def test_is_refused(self, verb: str, home: Path, tmp_path: Path) -> None:
        out = str(tmp_path / "out")
        run, tiny = Run.open(str(home / "run")), Run.open(str(home / "tiny"))
        cohort = open_cohort(run.cohort_url)
        calls: dict[str, Callable[[], object]] = {
            "prepare": lambda: prepare_cohort(
                [scan_of(str(path)) for path in (home / "scans").iterdir()],
                out,
                config=PrepareConfig(),
                split=SplitConfig(),
            ),
            "fit": lambda: fit(experiment("3D-None"), cohort, out),
            "sweep": lambda: fit_trials([experiment("3D-None")], cohort, out),
            "evaluate": lambda: evaluate([tiny], open_cohort(str(home / "cohorts/lesioned.zarr"))),
            "predict": lambda: uadray.predict(run, home / "p_T1w.nii.gz", out=out),
            "export": lambda: uadray.export(run, out, onnx=False),
        }
        folder, name = out, files.LOCK
        if verb == "evaluate":
            folder, name = files.join(tiny.url, "evaluation"), f"{files.LOCK}-lesioned"
        before = files.list_names(folder)
        with (
            lock.hold(folder, name=name),
            pytest.raises(LockedError, match=f"process {os.getpid()}"),
        ):
            calls[verb]()
        assert files.list_names(folder) == before
