"""Names of files from any text: readable, and never two of one name."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uadray.naming import MAX_BYTES, distinct_names, file_name, name_key, path_names


@pytest.mark.parametrize(
    "text", ["患者一", "Пациент", "Müller-2_a.b+c", "שרה", "मीरा", "サトウ", "😀", "№5"]
)
def test_any_script_stays_as_it_is(text: str) -> None:
    assert file_name(text) == unicodedata.normalize("NFC", text)


@given(st.text(max_size=300))
def test_a_name_is_one_part_of_a_path(text: str) -> None:
    name = file_name(text)
    assert name
    assert not set("/\\\0\t\n ") & set(name)
    assert not name.startswith(".")
    assert len(name.encode()) <= MAX_BYTES
    assert file_name(name) == name


@given(st.lists(st.text(max_size=30), unique=True, max_size=8))
def test_names_are_kept_apart(texts: list[str]) -> None:
    names = distinct_names(texts)
    assert len({name_key(name) for name in names.values()}) == len(texts)


def test_names_of_a_path() -> None:
    names = list(path_names("/data/p1/T1.nii.gz", ".nii.gz"))
    assert names[:3] == ["T1", "p1_T1", "data_p1_T1"]
    assert names[3].startswith("T1-")
    assert list(path_names("s3://bucket/p1/T1.nii", ".nii"))[2] == "bucket_p1_T1"
