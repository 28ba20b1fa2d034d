"""Fixtures that tests at every height share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from own_registry import OwnRegistry

from uadray import plugins
from uadray.methods import DETECTORS, NAMED
from uadray.preparation.layouts import LAYOUTS
from uadray.preparation.settings import STRIPPERS
from uadray.strategies import STRATEGIES

# The same examples on every run, so that a change is red or green by what it changes;
# `HYPOTHESIS_PROFILE=search` draws new ones.
settings.register_profile("same", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

REPOSITORY = Path(__file__).resolve().parents[1]

REGISTRIES: tuple[plugins.Registry[Any], ...] = (NAMED, LAYOUTS, STRIPPERS, STRATEGIES)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the public scans; tests that need it skip where it is absent."""
    root = Path(os.environ.get("UADRAY_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (root / "ds002748").is_dir():
        pytest.skip(f"no real scans at {root}: set UADRAY_REAL_DATA to a folder holding ds002748/")
    return root


@pytest.fixture
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnRegistry]:
    """A folder for modules and packages with methods."""
    folder = tmp_path / "outside"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    # They compute and draw, which few tests need.
    from uadray.metrics import outside
    from uadray.metrics.table import METRICS
    from uadray.report.sections import SECTIONS

    for one in (*REGISTRIES, METRICS, SECTIONS):
        monkeypatch.setattr(one, "imported", dict(one.imported))
        monkeypatch.setattr(one, "_origins", dict(one._origins))
    kinds, loaded = dict(DETECTORS), set(sys.modules)
    outside.installed.cache_clear()
    yield OwnRegistry(folder=folder)
    outside.installed.cache_clear()
    DETECTORS.clear()
    DETECTORS.update(kinds)
    for name, module in list(sys.modules.items()):
        if name not in loaded and str(folder) in (getattr(module, "__file__", None) or ""):
            del sys.modules[name]
    plugins.entries.cache_clear()
