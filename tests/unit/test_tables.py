"""Tables keep their cells, whatever stands in them."""

from markdown_tables import rows_of

from uadray.tables import escape, to_csv, to_markdown


def test_markdown_pads_and_aligns() -> None:
    lines = to_markdown(["a", "b", "c"], [["x", "1.50", "1e5"], ["long name", "", "10"]])
    assert lines.splitlines() == [
        "| a         |    b |   c |",
        "|:----------|-----:|----:|",
        "| x         | 1.50 | 1e5 |",
        "| long name |      |  10 |",
    ]
    assert "|:----|----:|:----|:----|" in to_markdown("nvrf", [["1"] * 4], align="lrl")


def test_markdown_takes_heads_that_recur_and_any_escaped_name() -> None:
    name = "a|b\n*c* <i>\\"
    (head, row) = rows_of(to_markdown(["", "GFLOP", "GFLOP"], [[escape(name), "1", "2"]]))
    assert head == ["", "GFLOP", "GFLOP"]
    assert row == [r"a\|b \*c\* &lt;i>" + r"\\", "1", "2"]


def test_csv_keeps_whole_numbers_whole_and_floats_exact() -> None:
    text = to_csv(["n", "x", "is", "x"], [[1, 0.1 + 0.2, True, "-a"], [None, None, False, ""]])
    assert text == "n,x,is,x\n1,0.30000000000000004,True,'-a\n,,False,\n"


def test_an_empty_csv_has_its_head() -> None:
    assert to_csv(["a", "b"], []) == "a,b\n"
