"""Headless Chromium for the pages, and a report made from plausible runs."""

import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browsing import WAIT_S
from fake_runs import LEVELS, write_run

from uadray.config import Experiment
from uadray.report import write_report

NASTY = "<script>alert(1)</script>"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1440,1200",
)


def find(variable: str, *names: str) -> str | None:
    """Path of a program from the environment variable, or of the first name on the path."""
    return os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A fresh Chromium; tests that need it skip where it or its driver is absent."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = find("UADRAY_CHROMIUM", "chromium", "chromium-browser", "google-chrome")
    driver = find("UADRAY_CHROMEDRIVER", "chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium or chromedriver found: install both to test pages in a browser")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    for patient in (started.set_page_load_timeout, started.set_script_timeout):
        patient(WAIT_S)
    yield started
    started.quit()


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of ten runs on two cohorts, one that failed, and one with names that are markup."""
    root = tmp_path_factory.mktemp("runs")
    for name in LEVELS:
        write_run(root / name, name, cohorts=("stroke", "tumour"), num_epochs=30, size=64)
    failed = {"status": "failed", "error": "out of memory at epoch 3"}
    write_run(root / "failed", "3D-Multi-Cube-n", cohorts=(), summary=failed)
    write_run(root / "nasty", "ZScore", name=NASTY, notes=(NASTY,))
    return Path(write_report([str(root)], str(root / "report.html")))


@pytest.fixture(scope="session")
def sweep_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a sweep: two settings, two seeds, a baseline, and trials that did not finish."""
    root = tmp_path_factory.mktemp("sweep")
    for name, size, share, seed in itertools.product(
        ("3D-None", "3D-Cube-n"), (64, 512), (0.2, 1.0), (0, 1)
    ):

        def change(made: Experiment, size: int = size, share: float = share) -> Experiment:
            method = replace(made.method, latent_size=size)  # type: ignore[call-arg]
            return replace(made, method=method, fit=replace(made.fit, data_share=share))

        folder = root / f"{name}-{size}-{share}-{seed}"
        write_run(folder, name, cohorts=("stroke", "tumour"), seed=seed, change=change, num_cases=1)
    write_run(root / "pca", "PCA-16", cohorts=("stroke", "tumour"), num_cases=1)
    failed = {"status": "failed", "error": f"NotFiniteError: {NASTY}"}
    write_run(root / "failed", "3D-None", name=NASTY, cohorts=(), summary=failed)
    stopped = {"status": "stopped", "epochs": 3, "validation/reconstruction": 0.06}
    write_run(root / "stopped", "3D-None", seed=7, cohorts=(), summary=stopped)
    viewers = {("stroke", "stroke-0000", "pca"): "viewers/pca.html"}
    return Path(write_report([str(root)], str(root / "report.html"), viewers=viewers))
