"""Sections that other packages add at the end of a report.

A package offers one by an entry point of the group `uadray.sections`: a function of `ReportData`
that returns a title and what stands below it. The page stays one file that runs no script of
theirs and loads nothing: HTML is written anew from the tags and attributes that are allowed, and
what is not is refused by name. A section that fails is named on the page.
"""

import copy
import numbers
import xml.etree.ElementTree as ET
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any, TypeAlias

import pandas as pd
from markupsafe import Markup, escape

from uadray import html
from uadray.errors import PluginError, UadrayError
from uadray.plugins import Registry, failure
from uadray.report.columns import Column, short
from uadray.report.words import Compared
from uadray.runs.records import RunRecord


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """What a report is made of; a section has a copy of its own."""

    runs: Sequence[RunRecord]
    """All runs, with settings, epochs and evaluations."""
    cohorts: Sequence[Compared]
    """Each cohort: its rows (a run with its evaluation), and how methods compare."""


Content: TypeAlias = str | bytes | pd.DataFrame
"""Text as HTML, a picture as SVG or PNG, or a table."""

MakeSection = Callable[[ReportData], tuple[str, Content | Sequence[Content]]]
"""Gives title and contents."""


def _check_entry(name: str, entry: Any) -> None:
    if not callable(entry):
        raise PluginError(f"expected a function of the report's data, was {entry!r}")


SECTIONS: Registry[MakeSection] = Registry("uadray.sections", "section", _check_entry)
"""Every section by its name; all are of other packages."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a table."""

    cells: tuple[Any, ...]
    """One a column."""
    is_plain: bool = False
    """Nothing here is a plain baseline."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as the page lays out its own."""

    columns: tuple[Column[Line], ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """What the page shows of one."""

    title: str
    """Its head; the name of one that failed."""
    package: str
    """That it is of."""
    parts: tuple[Markup | Table, ...] = ()
    """In order."""
    error: str = ""
    """Why there is nothing of it."""


def make_sections(runs: Sequence[RunRecord], cohorts: Sequence[Compared]) -> list[Section]:
    """Call all sections of installed packages, by their names."""
    failed: dict[str, str] = {}
    usable = SECTIONS.usable(lambda name, error: failed.update({name: str(error)}))
    made = {name: _make(name, entry, runs, cohorts) for name, entry in usable.items()}
    made |= {name: Section(title=name, package="", error=error) for name, error in failed.items()}
    return [made[name] for name in sorted(made)]


def _make(
    name: str, entry: MakeSection, runs: Sequence[RunRecord], cohorts: Sequence[Compared]
) -> Section:
    package = str(SECTIONS.package(name) or "")
    module = getattr(entry, "__module__", None) or ""
    try:
        given = entry(copy.deepcopy(ReportData(runs=runs, cohorts=cohorts)))
        if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str)):
            raise PluginError(f"expected a title and its contents, came {type(given).__name__}")
        # A text that is marked as safe is a text like any other.
        title, contents = str(given[0]), given[1]
        one = isinstance(contents, (str, bytes, pd.DataFrame))
        parts = tuple(_part(content, title) for content in ([contents] if one else contents))
        if not title.strip() or not parts:
            raise PluginError("its title or its contents are empty")
        return Section(title=title, package=package, parts=parts)
    except UadrayError as error:
        return Section(title=name, package=package, error=str(error))
    except (Exception, SystemExit) as error:
        return Section(title=name, package=package, error=failure(error, module))


def _part(content: Any, title: str) -> Markup | Table:
    if isinstance(content, pd.DataFrame):
        return _table(content)
    if isinstance(content, bytes):
        return Markup('<p><img src="{}" alt="{}"></p>').format(_picture(content), title)
    if isinstance(content, str):
        fragment = _Fragment()
        fragment.feed(str(content))
        fragment.close()
        return fragment.whole()
    raise PluginError(
        "contents are HTML as text, SVG or PNG as bytes, or a pandas.DataFrame; came "
        f"{type(content).__name__}"
    )


def _picture(content: bytes) -> str:
    """A data URI: a picture in `img` runs no script and loads nothing, whatever it holds."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return html.data_uri(content)
    try:
        is_svg = ET.fromstring(content).tag.rpartition("}")[2] == "svg"
    except ET.ParseError:
        is_svg = False
    if not is_svg:
        raise PluginError(f"a picture must be a whole SVG or PNG, began with {content[:16]!r}")
    return "data:image/svg+xml;base64," + b64encode(content).decode()


def _table(frame: pd.DataFrame) -> Table:
    if not isinstance(frame.index, pd.RangeIndex) or frame.index.name is not None:
        frame = frame.reset_index()
    names = [" ".join(map(str, n)) if isinstance(n, tuple) else str(n) for n in frame.columns]
    if not names:
        raise PluginError("a table has no column")
    return Table(
        columns=tuple(_column(place, name) for place, name in enumerate(names)),
        lines=tuple(Line(cells=cells) for cells in frame.itertuples(index=False, name=None)),
    )


def _column(place: int, name: str) -> Column[Line]:
    def value(line: Line) -> float | str | None:
        cell = line.cells[place]
        if pd.api.types.is_scalar(cell) and pd.isna(cell):
            return None
        is_number = isinstance(cell, numbers.Real) and not isinstance(cell, bool)
        return float(cell) if is_number else str(cell)

    def text(line: Line) -> str:
        cell, known = line.cells[place], value(line)
        if isinstance(known, str) or isinstance(cell, numbers.Integral):
            return str(cell)
        return short(known)

    return Column(key=f"column_{place}", head=name, value=value, text=text)


_ATTRIBUTES = {
    "img": {"src", "alt", "width", "height"},
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan", "scope"},
    "ol": {"start"},
    "details": {"open"},
}
"""Of single tags, beside `_EVERYWHERE`."""

_EVERYWHERE = {"class", "title", "lang", "dir"}

_CLASSES = {"data", "text", "muted", "warning", "badge", "small-print", "scroll"}
"""Of the page's own style, of which no script takes note."""

_VOID = {"br", "hr", "img", "wbr"}

_TAGS = {
    *("h3", "h4", "h5", "h6", "p", "div", "span", "blockquote", "pre", "code", "details"),
    *("summary", "ul", "ol", "li", "dl", "dt", "dd", "figure", "figcaption", "b", "strong", "i"),
    *("em", "u", "s", "small", "sub", "sup", "abbr", "mark", "kbd", "samp", "var", "q", "time"),
    *("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", *_VOID),
}

_PICTURES = ("data:image/png;base64,", "data:image/svg+xml;base64,", "data:image/jpeg;base64,")


class _Fragment(HTMLParser):
    """Writes HTML anew; raises PluginError at what is not allowed."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._written: list[str] = []
        self._open: list[str] = []

    def whole(self) -> Markup:
        """All that was read."""
        if self._open:
            raise PluginError(f"its HTML does not close <{self._open[-1]}>")
        return Markup("".join(self._written))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _TAGS:
            raise PluginError(
                f"its HTML has <{tag}>: the page is one file that runs no script of a section and "
                "loads nothing, so that text, lists, tables and pictures within it are allowed"
            )
        for name, value in attrs:
            self._check(tag, name, value or "")
        texts = "".join(f' {name}="{escape(value or "")}"' for name, value in attrs)
        self._written.append(f"<{tag}{texts}>")
        if tag not in _VOID:
            self._open.append(tag)

    handle_startendtag = handle_starttag  # as browsers read it

    @staticmethod
    def _check(tag: str, name: str, value: str) -> None:
        if name not in _EVERYWHERE | _ATTRIBUTES.get(tag, set()):
            raise PluginError(f"its HTML has <{tag} {name}=...>, which is not allowed")
        if name == "class" and (other := sorted(set(value.split()) - _CLASSES)):
            raise PluginError(
                f"its HTML has the class {other[0]!r}; allowed are {', '.join(sorted(_CLASSES))}"
            )
        if name == "src" and not value.startswith(_PICTURES):
            raise PluginError(
                f"its HTML has <img src={value[:40]!r}>: pictures must lie in the page, as "
                f"{_PICTURES[0]}... does; or give SVG or PNG as bytes"
            )

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        if not self._open or self._open.pop() != tag:
            raise PluginError(f"its HTML closes <{tag}>, which is not the one that is open")
        self._written.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self._written.append(str(escape(data)))

    def handle_decl(self, decl: str) -> None:
        raise PluginError(f"its HTML has <!{decl[:20]}>: give what stands within <body> alone")

    def unknown_decl(self, data: str) -> None:
        self.handle_decl(data)

    def handle_pi(self, data: str) -> None:
        raise PluginError(f"its HTML has <?{data[:20]}>: give what stands within <body> alone")
