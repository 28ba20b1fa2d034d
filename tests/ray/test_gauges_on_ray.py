"""What Prometheus would read of a fit, an evaluation and a sweep."""

import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from tiny_cohorts import NUM_TEST, NUM_THRESHOLD, tiny_vae, write_healthy, write_lesioned

from uadray.evaluation.job import evaluate
from uadray.gauges import GAUGES, Exported, set_trials
from uadray.train.job import fit
from uadray.train.settings import ScaleConfig

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.timeout(300),
]

Samples = dict[str, list[tuple[dict[str, str], float]]]


def scrape() -> Samples:
    """What the node of this Ray exports of ours: labels and value, by name."""
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    samples: Samples = {}
    for line in text.splitlines():
        match = re.fullmatch(r"ray_(uadray_\w+)\{(.*)\} (\S+)", line)
        if match:
            pairs = re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2])
            labels = {key: value.replace(r"\\", "\\") for key, value in pairs}
            samples.setdefault(match[1], []).append((labels, float(match[3])))
    return samples


def wait_for(what: Callable[[Samples], bool]) -> Samples:
    """Processes send what they have set to their node every ten seconds."""
    deadline = time.monotonic() + 90
    while not what(samples := scrape()):
        assert time.monotonic() < deadline, samples
        time.sleep(1)
    return samples


def of(samples: Samples, name: str, **tags: str) -> list[float]:
    return [value for labels, value in samples.get(name, []) if tags.items() <= labels.items()]


def test_a_fit_and_its_evaluation_are_exported_as_long_as_they_last(tmp_path: Path) -> None:
    cohort = write_healthy(tmp_path, name="gesunde-köpfe")
    url = str(tmp_path / ("lang" * 60) / "eins")
    exported: Samples = {}

    def while_fitting(record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            exported.update(wait_for(lambda s: of(s, "uadray_epoch", run=url) == [2]))
            # Ray would have dropped what was set once.
            time.sleep(30)
            assert of(scrape(), "uadray_epoch", run=url) == [2]

    run = fit(tiny_vae(3, epochs=3), cohort, url, report=while_fitting)
    tags = {"run": url, "trial": "eins", "experiment": "3D-None", "cohort": r"gesunde-k\xf6pfe"}
    second = run.metrics()[1]
    assert of(exported, "uadray_epochs", **tags) == [3]
    for name in ("train/reconstruction", "validation/reconstruction"):
        (value,) = of(exported, "uadray_loss", **tags, loss=name)
        assert value == pytest.approx(second[name])
    assert of(exported, "uadray_epoch_seconds", **tags) == pytest.approx([second["seconds"]])
    (rate,) = of(exported, "uadray_samples_per_second", **tags, worker="0")
    assert rate > 0
    scored = NUM_THRESHOLD + NUM_TEST
    left = scored

    def while_scoring(count: int) -> None:
        nonlocal left
        left -= count
        if not left:
            exported.update(wait_for(lambda s: of(s, "uadray_volumes_scored") == [scored]))

    evaluate([run], write_lesioned(tmp_path), report=while_scoring)
    assert of(exported, "uadray_volumes_to_score", cohort="stroke") == [scored]
    with Exported() as gauges:
        set_trials(gauges, "latent", running=2, ended=3, failed=1, waiting=4)
        exported.update(wait_for(lambda s: bool(of(s, "uadray_trials"))))
    assert of(exported, "uadray_trials", sweep="latent", state="waiting") == [4]
    assert set(exported) == set(GAUGES)
    for name, samples in exported.items():
        for labels, _ in samples:
            assert set(GAUGES[name].tags) <= set(labels)
    wait_for(lambda s: not s)


@pytest.mark.slow
def test_each_worker_of_a_group_has_its_rate(tmp_path: Path) -> None:
    cohort, seen = write_healthy(tmp_path), dict[str, float]()

    def look(record: dict[str, Any]) -> None:
        for labels, value in scrape().get("uadray_samples_per_second", []):
            if labels["trial"] == "two":
                seen[labels["worker"]] = value

    two = ScaleConfig(num_workers=2, cpus_per_worker=0.5)
    fit(tiny_vae(3, epochs=200), cohort, str(tmp_path / "two"), scale=two, report=look)
    assert set(seen) == {"0", "1"}
