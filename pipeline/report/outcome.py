"""How the run ended and exactly why: the first thing that the report says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.report.collect import Record, without_secrets

LABELS = {
    "pushed": "Pushed",
    "unchanged": "Unchanged",
    "not_blessed": "Not blessed",
    "invalid_data": "Data refused",
    "failed": "Failed",
    "open": "No ending recorded",
}
_ADVICE = {
    "not_blessed": (
        "The version that was live before, if any, stays live. Look at the failed checks, "
        "the worst mistakes and the slices below; better data or another preset is the cure, a "
        "lower floor the decision."
    ),
    "invalid_data": (
        "Correct the data and run again. If the finding is meant to be there, allow it instead: "
        "by the check's mode, or by ingest.error_budget for bad files."
    ),
    "failed": "Run the same command again: stages that ended are taken from the cache.",
    "open": "If no process works on it any more, run the same command again to go on from here.",
}


@dataclass(frozen=True)
class Check:
    """A check of the final gate: its value, the bound that was held to the threshold."""

    name: str
    value: Any
    bound: Any
    threshold: Any
    passed: bool
    message: str


@dataclass(frozen=True)
class Outcome:
    """The banner, the reasons behind it and what was said on the way."""

    kind: str
    label: str
    lead: str
    reasons: list[str]
    advice: str
    checks: list[Check]
    warnings: list[str]
    notes: list[str]
    log: list[str]


def build(record: Record) -> Outcome:
    """Returns the outcome; a run without a result has the kind `open`."""
    result = record.result
    kind = result.outcome if result else "open"
    reasons = [without_secrets(reason) for reason in result.reasons] if result else []
    checks = [_check(check) for check in (record.verdict or {}).get("checks", [])]
    return Outcome(
        kind=kind,
        label=LABELS[kind],
        lead=_lead(record, kind, checks),
        reasons=reasons if kind != "unchanged" else [],
        advice=_ADVICE.get(kind, ""),
        checks=sorted(checks, key=lambda check: check.passed),
        warnings=_said(record, "warning"),
        notes=_said(record, "note"),
        log=record.log_tail() if kind in ("failed", "open") else [],
    )


def _lead(record: Record, kind: str, checks: list[Check]) -> str:
    result, model = record.result, record.request.config["push"]["model_name"]
    if kind == "pushed" and result:
        return f"The model passed every check and is version {result.version} of “{model}”."
    if kind == "unchanged" and result:
        return (
            f"Data, configuration and code are those of version {result.version} of “{model}”: "
            "nothing was pushed."
        )
    if kind == "not_blessed":
        failed = sum(not check.passed for check in checks)
        return f"The run finished and the model stays out: {failed} of {len(checks)} checks failed."
    where = stopped_at(record)
    at = f" at {where}" if where else ""
    if kind == "invalid_data":
        return f"The data was refused{at}, and no model was pushed."
    if kind == "failed":
        return f"The run stopped{at} with an error, and no model was pushed."
    return f"The run is still at work{at}, or its process was killed there."


def stopped_at(record: Record) -> str:
    """Returns the last stage that failed, or that began and did not end; empty if there is none."""
    running = ""
    for event in record.of_kind("stage"):
        if event["state"] in ("start", "failed"):
            running = event["name"]
        elif event["name"] == running:
            running = ""
    return running


def _check(check: dict[str, Any]) -> Check:
    return Check(
        name=check["name"],
        value=check.get("value"),
        bound=check.get("bound"),
        threshold=check.get("threshold"),
        passed=bool(check["passed"]),
        message=check.get("message") or "",
    )


def _said(record: Record, kind: str) -> list[str]:
    """Returns the texts of the notes or warnings, each once."""
    texts = (without_secrets(str(event.get("text", ""))) for event in record.of_kind(kind))
    return list(dict.fromkeys(texts))
