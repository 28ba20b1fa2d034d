"""Run folders to one self-contained HTML page, a CSV, a Markdown file and a terminal table."""

from uadray.report.page import write_report
from uadray.report.terminal import terminal_summary, terminal_table

__all__ = ["terminal_summary", "terminal_table", "write_report"]
