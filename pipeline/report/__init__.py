"""The report: one HTML file a run, and an index of all runs; a pure function of the workdir."""

from __future__ import annotations

from pipeline.report.command import command
from pipeline.report.page import write

__all__ = ["command", "write"]
