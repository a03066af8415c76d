"""The workdir's index page: every run with its outcome, and what became of each version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from pipeline import registry, runs
from pipeline.errors import SafelightError
from pipeline.report import figures, formats, outcome, render, retraining
from pipeline.report.collect import Record, without_secrets
from pipeline.report.figures import Series
from pipeline.runs import RunDir
from pipeline.workdir import Workdir

_CHARTED = 60
_METRICS = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "worst_class_recall": "Worst class recall",
}


@dataclass(frozen=True)
class RunRow:
    """A line of the table."""

    run_id: str
    created: str
    kind: str
    label: str
    metrics: dict[str, float]
    version: int | None
    reason: str
    examples: int
    report: str


@dataclass(frozen=True)
class VersionRow:
    """A version, as the registry has it; `report` is "" where its run has none."""

    version: int
    status: str
    published: str
    accuracy: float | None
    by: str
    why: str
    run_id: str
    report: str


@dataclass(frozen=True)
class Model:
    """A served model and its versions, newest first."""

    name: str
    current: int | None
    versions: list[VersionRow]


def write(workdir: Workdir) -> Path:
    """Writes `<workdir>/index.html` and returns its path."""
    rows = [_row(record) for record in _records(workdir)]
    page = render.render(
        "index.html.j2",
        {
            "rows": rows[::-1],
            "models": models(workdir),
            "charts": charts(rows),
            "metrics": _METRICS,
            "legend": legend(rows),
            "ledger": retraining.lines(workdir),
            "links": {row.run_id: row.report for row in rows if row.report},
        },
    )
    return render.replace(workdir.index, page)


def charts(rows: list[RunRow]) -> list[tuple[str, Markup]]:
    """Returns a chart a metric over the newest runs, oldest first."""
    rows = rows[-_CHARTED:]
    found = []
    for key, name in _METRICS.items():
        line = Series(name, [row.metrics.get(key) for row in rows], [row.kind for row in rows])
        labels = [f"{formats.moment(row.created)}, {row.label}" for row in rows]
        chart = figures.steps_chart(
            f"{name} of the last {len(rows)} runs", labels, [line], formats.percent_tick, "run"
        )
        if chart:
            found.append((name, chart))
    return found


def legend(rows: list[RunRow]) -> list[tuple[str, Markup]]:
    """Returns (label, mark) of each outcome that stands in the charts."""
    charted = {row.kind: row.label for row in rows[-_CHARTED:] if row.metrics}
    return [(label, figures.sample_mark(kind)) for kind, label in charted.items()]


def models(workdir: Workdir) -> list[Model]:
    """Reads each registry as it stands, repairing nothing."""
    found = []
    for path in sorted(workdir.root.glob("serving/*/")):
        try:
            held = registry.read(path)
        except SafelightError:
            # Written by a newer Safelight: the runs are shown without it.
            continue
        versions = sorted(held.entries, key=lambda entry: -entry.version)
        rows = [_version(workdir, entry) for entry in versions]
        if rows:
            found.append(Model(path.name, held.current, rows))
    return found


def _version(workdir: Workdir, entry: registry.Entry) -> VersionRow:
    return VersionRow(
        version=entry.version,
        status=entry.status,
        published=entry.published,
        accuracy=entry.metrics.get("accuracy"),
        by=entry.by,
        why=without_secrets(entry.why),
        run_id=entry.run_id,
        report=_link(RunDir(workdir.runs / entry.run_id)) if entry.run_id else "",
    )


def _link(run: RunDir) -> str:
    """Returns a run's report as the index links to it, or "" where there is none."""
    return f"runs/{run.root.name}/report.html" if run.report.is_file() else ""


def _records(workdir: Workdir) -> list[Record]:
    found = []
    for run in runs.all_runs(workdir.runs):
        try:
            found.append(Record(workdir, run))
        except SafelightError:
            continue
    return found


def _row(record: Record) -> RunRow:
    result = record.result
    kind = result.outcome if result else "open"
    reasons = result.reasons if result else []
    return RunRow(
        run_id=record.run.root.name,
        created=record.request.created,
        kind=kind,
        label=outcome.LABELS[kind],
        metrics=result.metrics if result else {},
        version=result.version if result else None,
        reason=without_secrets(reasons[0]) if reasons else "",
        examples=sum(result.examples.values()) if result else 0,
        report=_link(record.run),
    )
