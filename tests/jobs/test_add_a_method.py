"""The page on adding a method, followed to the letter; the example package, used on Ray."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from followed import REPOSITORY, blocks, run
from tiny_cohorts import write_healthy, write_lesioned
from tiny_scans import brain_image, write

from uadray.runs.reading import read_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PAGE = REPOSITORY / "docs/howto/add-a-method.md"


def test_the_page_is_followed(tmp_path: Path) -> None:
    (tmp_path / "jobs").symlink_to(REPOSITORY / "jobs")
    (source,), (project,) = blocks(PAGE, "python"), blocks(PAGE, "toml")
    (tmp_path / "my_ae.py").write_text(source)
    (tmp_path / "pyproject.toml").write_text(project)
    write(tmp_path / "scan.nii.gz", brain_image((116, 136, 116)))
    site = tmp_path / "site"
    uadray = f'uadray() {{ "{sys.executable}" -m uadray "$@"; }}\n'
    for block in blocks(PAGE, "console"):
        lines = block.replace("\n$ ", "\n").removeprefix("$ ")
        done = run(f"{uadray}{lines}", tmp_path, site)
    assert re.search(r"^MyAE +my-package 0.1.0 +this page$", done.stdout, flags=re.M)
    first = read_config(str(tmp_path / "runs/fits/MyAE"))["experiment"]["method"]
    assert (first["type"], first["width"]) == ("my_ae:MyAE", 4)
    assert first["package"]["version"].startswith("sha256:")
    second = read_config(str(tmp_path / "runs/fits/3D-MyAE-Cube-n"))["experiment"]["method"]
    assert second["package"] == {"distribution": "my-package", "version": "0.1.0"}
    assert "3D-MyAE-Cube-n" in (tmp_path / "report.html").read_text()
    card = (tmp_path / "models/mine/MODEL_CARD.md").read_text()
    assert "method `my_package:MyAE` of my-package 0.1.0" in card
    assert "pip install my-package==0.1.0" in card
    assert (tmp_path / "models/mine/reconstruction.onnx").exists()
    assert list((tmp_path / "predicted").rglob("*.nii.gz"))
    assert len(list((tmp_path / "runs/sweep/runs").iterdir())) == 2


def test_the_example(tmp_path: Path) -> None:
    """Fitted by two workers as by one; without the package its runs say what to install."""
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(REPOSITORY / "examples/plugin", source)
    run("pip install ./source", tmp_path, site)
    healthy, lesioned = write_healthy(tmp_path), write_lesioned(tmp_path)
    train = (
        f"python {REPOSITORY}/jobs/train.py 3D-ExampleAE-Cube-n --cohort {healthy.url} "
        "--fit.epochs 2 --fit.batch-size 8 --fit.precision float32"
    )
    run(f"{train} --out one", tmp_path, site)
    run(f"{train} --out two --scale.num-workers 2", tmp_path, site)
    evaluate = f"python {REPOSITORY}/jobs/evaluate.py one two --cohort {lesioned.url}"
    run(f"{evaluate} --num-resamples 20", tmp_path, site)
    one, two = (
        json.loads((tmp_path / name / "evaluation" / f"{lesioned.name}.json").read_text())
        for name in ("one", "two")
    )
    assert one["metrics"]["auprc"] == pytest.approx(two["metrics"]["auprc"], abs=0.02)
    assert one["outside_metrics"]["sensitivity"]["package"]["distribution"] == "uadray-example"
    assert 0 <= one["metrics"]["sensitivity"] <= 1
    run(f"python {REPOSITORY}/jobs/report.py one two --out with.html", tmp_path, site)
    assert "Whom a run misses" in (tmp_path / "with.html").read_text()
    done = run(f"{evaluate} --num-resamples 20", tmp_path, tmp_path / "nothing", check=False)
    assert done.returncode == 1
    assert "pip install uadray-example==0.1.0" in done.stderr
    assert "Traceback" not in done.stderr
    report = f"python {REPOSITORY}/jobs/report.py one two --out report.html"
    run(report, tmp_path, tmp_path / "nothing")
    page = (tmp_path / "report.html").read_text()
    assert "3D-ExampleAE-Cube-n" in page
    assert f'data-key="sensitivity" data-value="{one["metrics"]["sensitivity"]}"' in page
