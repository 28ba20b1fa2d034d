"""Must not happen: code run from files, markup from names, files outside, secrets on record."""

import ast
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_cohorts import write_healthy, write_lesioned

import uadray
from uadray import files
from uadray.config import experiment
from uadray.errors import ConfigError
from uadray.preparation.layouts import LAYOUTS
from uadray.preparation.plan import make_plan, planned_scans
from uadray.preparation.settings import PrepareConfig, SplitConfig
from uadray.preparation.splits import split_scans
from uadray.quality.page import write_quality_page
from uadray.runs.folder import Run
from uadray.store import Cohort, CohortWriter, Failure, Subject, open_cohort, verify

PACKAGE = Path(uadray.__file__).parent
REPOSITORY = PACKAGE.parent
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(REPOSITORY / "jobs").glob("*.py")])


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a source file with the dotted name that it is made by."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    """The literal value of a keyword argument; None where there is none, or no literal."""
    for one in call.keywords:
        if one.arg == name and isinstance(one.value, ast.Constant):
            return one.value.value
    return None


class TestNoCodeFromFiles:
    @pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
    def test_nothing_is_unpickled_or_evaluated(self, path: Path) -> None:
        for name, call in calls(path):
            last = name.rsplit(".", 1)[-1]
            assert name not in ("eval", "exec", "torch.load", "joblib.load", "os.system"), name
            assert last not in ("read_pickle", "to_pickle", "extractall", "unsafe_load"), name
            assert name != "yaml.load", "yaml.safe_load"
            assert keyword(call, "shell") is not True, name
            assert keyword(call, "allow_pickle") is not True, name
            if name in ("np.load", "numpy.load"):
                assert keyword(call, "allow_pickle") is False, f"{path}: say allow_pickle=False"
            if last in ("load", "loads") and "pickle" in name:
                # What a driver and its own tasks hand to each other, which Ray carries.
                text = ast.unparse(call).replace("'", '"')
                assert path.name == "each.py", f"{path}: {name}"
                assert 'packed["item"]' in text or 'row["result"]' in text, text

    @pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
    def test_nothing_that_unpickles_is_imported(self, path: Path) -> None:
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
        assert not names & {"pickle", "dill", "shelve", "marshal", "joblib", "tarfile"}

    def test_numpy_refuses_objects_in_kept_scans(self, tmp_path: Path) -> None:
        """A file put where a prepared scan waits for its shard runs nothing."""

        class Evil:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return Path.touch, (Path(tmp_path / "ran"),)  # type: ignore[return-value]

        writer = _writer(tmp_path)
        name = "000000-0.npz"
        place = tmp_path / "c.zarr/rows" / name
        place.parent.mkdir()
        np.savez(place, subject=np.array([Evil()], dtype=object))
        with pytest.raises(ValueError, match="damaged"):
            writer.write_kept(0, [name], [])
        assert not (tmp_path / "ran").exists()


class TestMarkup:
    def test_every_template_is_rendered_with_escapes(self) -> None:
        environments = [
            (path, call)
            for path in SOURCES
            if "jinja2" in path.read_text()
            for name, call in calls(path)
            if name.rsplit(".", 1)[-1] in ("Environment", "Template", "from_string")
        ]
        assert len(environments) == 1
        for path, call in environments:
            assert keyword(call, "autoescape") is True, path

    def test_no_template_switches_them_off(self) -> None:
        for path in PACKAGE.rglob("*.j2"):
            assert not re.search(r"\|\s*safe\b|autoescape", path.read_text()), path

    def test_pages_hold_no_handlers_made_of_text(self) -> None:
        for path in (*PACKAGE.rglob("*.j2"), *PACKAGE.rglob("templates/*.js")):
            assert not re.search(r"\b(document\.write|insertAdjacentHTML)\b", path.read_text()), (
                path
            )


NASTY = ("../../outside", "/outside", "a/b", "..", "<script>alert(1)</script>", "a\nb", 'x"y')
"""Names of scans that a table may hold."""


def _subject(row: int, name: str) -> Subject:
    return Subject(
        row=row,
        id=name,
        subject=name,
        scanner=name,
        split="train" if row else "validation",
        modality="T1w",
        affine=tuple(tuple(line) for line in np.diag([4.0, 4, 4, 1]).tolist()),
        source=name,
        brain_ml=8**3 * 0.064,
        lesion_ml=0.0,
        notes=name,
    )


def _writer(folder: Path, num_rows: int = 1) -> CohortWriter:
    return CohortWriter.create(
        str(folder / "c.zarr"), num_rows=num_rows, shape=(8, 8, 8), has_lesion=False, plan={}
    )


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """A cohort of scans with such names, two of them quarantined, each kept in a file first."""
    folder = tmp_path_factory.mktemp("around") / "inside"
    folder.mkdir()
    writer = _writer(folder, len(NASTY))
    good, bad = NASTY[:-2], NASTY[-2:]
    image, brain = np.full((8, 8, 8), 0.5, np.float16), np.ones((8, 8, 8), bool)
    names = [
        writer.put_row(_subject(row, name), {"image": image, "brain": brain})
        for row, name in enumerate(good)
    ]
    failures = [
        Failure(row=len(good) + k, id=name, source=name, reason=name) for k, name in enumerate(bad)
    ]
    writer.write_kept(0, names, failures)
    return writer.seal()


class TestNames:
    def test_no_name_of_a_scan_becomes_a_path(self, nasty: Cohort) -> None:
        folder = Path(nasty.url).parent
        assert {path.name for path in folder.parent.iterdir()} == {folder.name}
        write_quality_page(nasty)
        assert {path.name for path in folder.iterdir()} == {"c.zarr", "c-qc.html"}
        written = [str(path.relative_to(folder)) for path in folder.rglob("*")]
        assert not [path for path in written if "outside" in path or "script" in path]
        assert not (Path("/") / "outside").exists()

    def test_they_are_kept_as_they_are(self, nasty: Cohort) -> None:
        assert verify(nasty.url) == []
        assert tuple(open_cohort(nasty.url).subjects["id"]) == NASTY[:-2]
        assert tuple(failure["id"] for failure in nasty.quarantine) == NASTY[-2:]

    def test_a_page_shows_them_as_text(self, nasty: Cohort) -> None:
        text = Path(write_quality_page(nasty).url).read_text()
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text

    def test_a_cohort_names_no_folder_above(self, tmp_path: Path) -> None:
        for url in ("..", "a/..", "s3://b/.."):
            cohort = Cohort(url=url, attributes={})
            assert "/" not in cohort.name


SECRETS = {
    "password": ("sftp://user:{0}@host/healthy.zarr", "sftp://...@host/healthy.zarr"),
    "token": ("https://{0}@host/healthy.zarr", "https://...@host/healthy.zarr"),
    "signature": ("https://host/s.zarr?X-Amz-Signature={0}&x=1", "https://host/s.zarr?..."),
}


class TestSecrets:
    @pytest.mark.parametrize("kind", SECRETS)
    def test_urls_are_shown_without(self, kind: str) -> None:
        url, public = SECRETS[kind]
        text = f"cannot read '{url.format('hunter2')}' (403), nor {url.format('hunter2')}"
        assert files.without_secrets(text) == f"cannot read '{public}' (403), nor {public}"

    @pytest.mark.parametrize(
        "url",
        [
            "s3://bucket/a@b/c.nii.gz",
            "s3://bucket/a?b=c",
            "abfs://container@account.dfs.core.windows.net/x",
            "sftp://user@host/x",
            "/data/a:b@c/d?e",
            "phantom://stroke/17",
        ],
    )
    def test_what_is_no_secret_stays(self, url: str) -> None:
        assert files.without_secrets(url) == url
        assert files.normalise(url) == url

    @given(st.text(max_size=60))
    def test_leaving_out_is_done_in_one_go(self, text: str) -> None:
        once = files.without_secrets(text)
        assert files.without_secrets(once) == once

    @pytest.mark.parametrize("kind", SECRETS)
    def test_no_store_or_run_takes_them(self, kind: str) -> None:
        url = SECRETS[kind][0].format("hunter2")
        for use in (open_cohort, Run.open, verify):
            with pytest.raises(ConfigError, match="environment") as caught:
                use(url)
            assert "hunter2" not in str(caught.value)

    def test_a_signed_scan_leaves_its_signature_nowhere(self, tmp_path: Path) -> None:
        table = tmp_path / "scans.csv"
        rows = [f"https://host/get/{k}.nii.gz?sig=hunter{k},s{k}" for k in range(8)]
        table.write_text("image,id\n" + "\n".join(rows))
        scans = LAYOUTS["csv"](str(table), "T1w")
        rows, split = split_scans(scans, SplitConfig(), seed=0), SplitConfig()
        planned = list(planned_scans(rows))
        assert "hunter" not in json.dumps(planned)
        assert "hunter" not in json.dumps(make_plan(rows, PrepareConfig(), split, seed=0))
        assert sorted(scan["image"] for scan in planned) == [f"{k}.nii.gz?..." for k in range(8)]

    def test_no_record_takes_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        planted = {
            name: f"planted-{n}-7f3a"
            for n, name in enumerate(
                (
                    *("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD"),
                    *("WANDB_API_KEY", "HF_TOKEN"),
                )
            )
        }
        for name, value in planted.items():
            monkeypatch.setenv(name, value)
        cohort = write_healthy(tmp_path)
        lesioned = write_lesioned(tmp_path)
        run = Run.create(str(tmp_path / "run"), experiment("PCA-4"), cohort)
        run.finish({"status": "finished"})
        write_quality_page(lesioned)
        for path in tmp_path.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert not [n for n, v in planted.items() if v.encode() in content], path

    def test_no_setting_asks_for_one(self) -> None:
        """Keys come by the environment: a flag would stand in shell histories and job tables."""
        secret = re.compile(r"(^|_)(password|passwd|secret|token|credentials?|api_?key)$", re.I)
        for path in SOURCES:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and any(
                    "dataclass" in ast.unparse(d) for d in node.decorator_list
                ):
                    fields = [n.target for n in node.body if isinstance(n, ast.AnnAssign)]
                    named = [
                        f.id for f in fields if isinstance(f, ast.Name) and secret.search(f.id)
                    ]
                    assert not named, f"{path}: {node.name}.{named}"


def test_subjects_hold_nothing_else() -> None:
    """Those who add a field to the table of subjects look here whether it may stand in a report."""
    assert [field.name for field in dataclasses.fields(Subject)] == [
        "row",
        "id",
        "subject",
        "scanner",
        "split",
        "modality",
        "affine",
        "source",
        "source_bytes",
        "source_digest",
        "source_stamp",
        "image_digest",
        "brain_ml",
        "lesion_ml",
        "notes",
    ]
