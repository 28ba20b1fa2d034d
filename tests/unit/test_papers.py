"""Published figures are those that the papers print."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from uadray.config import BENGS_TABLE_1
from uadray.errors import ConfigError
from uadray.papers import (
    BAUR_2018,
    BEHRENDT_2025,
    BENGS_2021,
    FROTSCHER_2025,
    MEISSEN_2021,
    PAPERS,
    Published,
)


def paper(real_data: Path, name: str) -> str:
    path = real_data.parent / "papers" / f"{name}.txt"
    if not path.exists():
        pytest.skip(f"the text of {name} is not at hand")
    return path.read_text()


PRINTED = {
    ("bengs2021", "table-1"): 2 * 14 * 4,
    ("bengs2021", "table-2"): 4 * 4,
    ("baur2018", "table-1"): 8 * 4,
    ("meissen2021", "table-2"): 7 * 3 + 6 * 3 - 1,
    ("meissen2021", "table-3"): 2 * 3,
    ("meissen2021", "table-4-I"): 4 * 3,
    ("meissen2021", "table-4-II"): 4 * 3,
    ("behrendt2025", "table-3"): 8 + 8 * 16,
}
"""Figures in the papers' tables, counted there: rows times columns, deviations included. Of SSAE
table 2 of Meissen 2021 has two figures of the first cohort, and none of the second."""


@pytest.mark.parametrize(("key", "table"), PRINTED)
def test_no_figure_of_a_table_is_left_out(key: str, table: str) -> None:
    published = [p for e in PAPERS[key].study(table).entries for p in e.published.values()]
    assert len(published) + sum(p.deviation is not None for p in published) == PRINTED[key, table]


def test_all_tables_are_counted() -> None:
    ours = {(k, s.key) for k, p in PAPERS.items() for s in p.studies if s.key.startswith("table")}
    assert ours == {*PRINTED, ("meissen2021", "table-1")}
    statistics = MEISSEN_2021.study("table-1").statistics
    assert len(statistics) == 4


def test_each_figure_that_meissen_prints_is_there(real_data: Path) -> None:
    """Counted in the paper's text, not in our list."""
    text = paper(real_data, "meissen2021").replace("<b>", "").replace("</b>", "")
    rows = [line.split("\t") for line in text.splitlines() if "\t" in line]
    figures = [c for row in rows for c in row[1:] if re.fullmatch(r"[\d.]+", c)]
    ours = [
        f"{p.value:g}"
        for study in MEISSEN_2021.studies
        for e in study.entries
        for p in e.published.values()
    ]
    for one in MEISSEN_2021.study("table-1").statistics:
        ours += [f"{one.components_per_scan:g}", f"{one.voxels_per_component:g}"]
    assert sorted(ours, key=float) == sorted((f"{float(c):g}" for c in figures), key=float)


def test_bengs_tables_are_as_printed(real_data: Path) -> None:
    text = paper(real_data, "bengs2021")
    row = re.compile(r"^([23]D-\S+) (?:(T1|T1ce) )?([\d.]+) ([\d.]+) ± ([\d.]+) ([\d.]+)$", re.M)
    printed = [m.groups() for m in row.finditer(text)]
    assert len(printed) == 28 + 4
    table_1 = BENGS_2021.study("table-1").entries
    assert [e.label for e in table_1] == [p[0] for p in printed[:28]]
    assert {e.label for e in table_1} == set(BENGS_TABLE_1)
    for entry, (_, _, dice_d, mean, deviation, auprc) in zip(table_1, printed[:28], strict=True):
        published = entry.published
        assert published["dice_d"].value == pytest.approx(float(dice_d) / 100)
        assert published["dice_s_mean"].value == pytest.approx(float(mean) / 100)
        assert published["dice_s_mean"].deviation == pytest.approx(float(deviation) / 100)
        assert published["auprc"].value == pytest.approx(float(auprc) / 100)
    table_2 = {(e.label, e.role): e.published for e in BENGS_2021.study("table-2").entries}
    roles = {"T1": "tumour", "T1ce": "tumour-t1ce"}
    for name, sequence, dice_d, mean, _, auprc in printed[28:]:
        published = table_2[name, roles[sequence]]
        assert [published[k].value for k in ("dice_d", "dice_s_mean", "auprc")] == pytest.approx(
            [float(v) / 100 for v in (dice_d, mean, auprc)]
        )


def test_baur_table_is_as_printed(real_data: Path) -> None:
    text = paper(real_data, "baur2018").replace("<sub>", "").replace("</sub>", "")
    entries = {e.label: e.published for e in BAUR_2018.study("table-1").entries}
    lines = [line.split("\t") for line in text.splitlines() if line.count("\t") == 4]
    rows = {c[0].split(" [")[0].replace(" ", ""): c[2:] for c in lines[1:]}
    assert set(rows) == set(entries)
    for label, columns in rows.items():
        numbers = [float(n) for n in re.findall(r"\d+\.\d+", " ".join(columns))]
        published = entries[label]
        assert [
            published["dice_s_mean"].value,
            published["dice_s_mean"].deviation,
            published["auprc"].value,
            published["seconds_per_slice"].value,
        ] == pytest.approx(numbers)


def test_meissen_tables_are_as_printed(real_data: Path) -> None:
    text = paper(real_data, "meissen2021").replace("<b>", "").replace("</b>", "")
    lines = [line.split("\t") for line in text.splitlines() if "\t" in line]

    def row(label: str, columns: int, skip: int = 0) -> list[float]:
        matches = [c for c in lines if c[0].startswith(label) and len(c) == columns + 1]
        return [float(c) for c in matches[skip][1:] if c != "-"]

    ours = {"HistEq": "Ours", "VAE (restoration)": "VAE (rest", "GMVAE (restoration)": "GMVAE(rest"}
    ours |= {"SSAE (spatial)": "SSAE", "Transformer": "Transformer"}
    for key, columns in (("table-2", 6), ("table-3", 3)):
        study = MEISSEN_2021.study(key)
        for label in dict.fromkeys(e.label for e in study.entries):
            values = [
                p.value for e in study.entries if e.label == label for p in e.published.values()
            ]
            assert values == row(ours.get(label, label), columns)
    for number, key in enumerate(("table-4-I", "table-4-II")):
        names = {"tumour": "BraTS", "mslub": "MSLUB", "wmh": "WMH", "msseg2015": "MSSEG2015"}
        for entry in MEISSEN_2021.study(key).entries:
            values = [p.value for p in entry.published.values()]
            assert values == row(names[entry.role], 3, skip=number)
    statistics = MEISSEN_2021.study("table-1").statistics
    assert [s.components_per_scan for s in statistics] == row("Avg. anomalies", 4)
    assert [s.voxels_per_component for s in statistics] == row("Avg. anomaly size", 4)


def test_data_size_study_nests_four_methods_and_shares() -> None:
    experiments = BENGS_2021.study("figure-5").experiments()
    assert len(experiments) == 16
    assert {e.fit.data_share for e in experiments} == {0.1, 0.2, 0.6, 1.0}


def test_figures_of_the_benchmark_are_marked_as_digitised() -> None:
    study = FROTSCHER_2025.study("figure-results")
    assert len(study.entries) == 8 * 8
    figures = [p for e in study.entries for p in e.published.values()]
    assert all(p.digitised for p in figures)
    assert not any(
        p.digitised
        for paper in PAPERS.values()
        if paper is not FROTSCHER_2025
        for one in paper.studies
        for e in one.entries
        for p in e.published.values()
    )
    # The threshold of the test set itself does no worse than another.
    for entry in study.entries:
        values = {key: p.value for key, p in entry.published.items()}
        assert values["dice_s_best_on_test"] >= values["dice_s_mean"]
    (best,) = (e for e in study.entries if (e.label, e.role) == ("Disyre", "brats-t2"))
    assert best.published["dice_s_mean"].value == 0.645
    assert best.experiment is not None
    assert best.experiment.name == "DISYRE"


def test_deviations_of_folds_are_not_those_of_people() -> None:
    entries = BEHRENDT_2025.study("table-3").entries
    assert all(p.deviation_over == "folds" for e in entries for p in e.published.values())
    (one,) = (e for e in entries if (e.label, e.role) == ("DAE", "atlas"))
    assert one.published["dice_s_mean"] == Published(
        value=0.0853, deviation=0.0028, deviation_over="folds"
    )


def test_unknown_study_is_refused_with_those_known() -> None:
    with pytest.raises(ConfigError, match=r"table-9.*figure-5"):
        BENGS_2021.study("table-9")
    assert all(key == paper.key for key, paper in PAPERS.items())


def test_figures_are_those_that_an_evaluation_writes() -> None:
    for paper in PAPERS.values():
        paper.select()
    study = BENGS_2021.study("table-1")
    entry = replace(study.entries[0], published={"dise": Published(value=0.5)})
    with pytest.raises(ConfigError, match=r"table-1: entry .* has unknown \['dise'\]"):
        replace(BENGS_2021, studies=(replace(study, entries=(entry,)),)).select()
