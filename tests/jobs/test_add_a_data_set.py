"""The page on adding a data set, followed to the letter; the example's layout."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from followed import REPOSITORY, run
from tiny_scans import brain_image, write

from uadray.runs.reading import read_config
from uadray.store import open_cohort

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PAGE = REPOSITORY / "docs/howto/add-a-data-set.md"


def write_own(folder: Path) -> None:
    image = brain_image((116, 136, 116))
    lesion = np.zeros(image.shape)
    lesion[50:65, 60:75, 50:65] = 1
    for subject in ("anna", "bert", "cleo", "dora"):
        (folder / subject).mkdir(parents=True)
        write(folder / subject / "t1.nii.gz", image)
        image = image * 1.01
    for subject in ("cleo", "dora"):
        write(folder / subject / "lesion.nii.gz", lesion)
    write(folder / "dora/flair.nii.gz", lesion)


def test_the_page_is_followed(tmp_path: Path) -> None:
    (tmp_path / "jobs").symlink_to(REPOSITORY / "jobs")
    site, page = tmp_path / "site", PAGE.read_text()
    write_own(tmp_path / "DATA/own")
    printed = []
    for block in re.finditer(r"```(\w+)\n(.*?)```", page, flags=re.S):
        if block[1] == "console":
            lines = block[2].replace("\n$ ", "\n").removeprefix("$ ")
            here = 'export PYTHONPATH="$PYTHONPATH:$PWD"\n' if "my_layout:own" in lines else ""
            printed.append(run(here + lines, tmp_path, site).stdout)
        else:  # the file that was named last
            name = re.findall(r"`(\w+\.\w+)`", page[: block.start()])[-1]
            (tmp_path / name).write_text(block[2])
    assert "Scans as SUBJECT/t1.nii.gz, lesions as SUBJECT/lesion.nii.gz." in printed[1]
    assert "found 4 scans, left out 1" in printed[1]
    table, healthy, lesioned = (
        open_cohort(str(tmp_path / f"runs/{name}.zarr"))
        for name in ("table", "healthy", "lesioned")
    )
    assert set(table.subjects["id"]) == set(healthy.subjects["id"]) == {"anna", "bert"}
    assert set(lesioned.subjects["id"]) == {"cleo", "dora"}
    package = {"distribution": "my-set", "version": "0.1.0"}
    assert "layout" not in table.attributes
    assert healthy.attributes["layout"]["name"] == "my_layout:own"
    assert healthy.attributes["layout"]["package"]["version"].startswith("sha256:")
    assert lesioned.attributes["layout"] == {"name": "own", "package": package}
    assert lesioned.attributes["plan"]["config"]["package"] == package
    assert "brain mask by bright of my-set 0.1.0" in lesioned.subjects["notes"][0]
    erasing = read_config(str(tmp_path / "runs/fits/3D-Slab-n"))["experiment"]["erasing"]
    assert (erasing["strategy"], erasing["package"]) == ("slab", package)
    assert "3D-Slab-n" in printed[-1]


def test_the_example(tmp_path: Path) -> None:
    """Its layout; without the package its cohort opens, and says what verifying it again needs."""
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(REPOSITORY / "examples/plugin", source)
    run("pip install ./source", tmp_path, site)
    write_own(tmp_path / "own")
    prepare = f"python {REPOSITORY}/jobs/prepare.py"
    command = f"{prepare} example own --parts healthy --out c.zarr --size 32"
    assert "found 4 scans, left out 1" in run(command, tmp_path, site).stdout
    cohort = open_cohort(str(tmp_path / "c.zarr"))
    assert set(cohort.subjects["id"]) == {"anna", "bert"}
    assert cohort.attributes["layout"] == {
        "name": "example",
        "package": {"distribution": "uadray-example", "version": "0.1.0"},
    }
    nothing = tmp_path / "nothing"
    assert "whole" in run(f"{prepare} --verify c.zarr", tmp_path, nothing).stdout
    (tmp_path / "c.zarr/brain/c/0/0/0/0").write_bytes(b"")
    done = run(f"{prepare} --verify c.zarr", tmp_path, nothing, check=False)
    assert done.stdout.endswith("--redo damaged  # needs uadray-example 0.1.0\n")
    done = run(command, tmp_path, nothing, check=False)
    assert done.returncode == 1
    assert "no layout is named 'example'" in done.stderr
