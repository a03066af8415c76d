"""How the run ended and exactly why: the first thing that the report says, and `safelight why`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report import measures
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
# Checks whose numbers are shares of images, and those whose numbers are differences of shares.
_SHARES = frozenset({"accuracy", "class_recall", "slices", "robustness", "abstention"})
_DIFFERENCES = frozenset({"slice_regression", "robustness_champion", "forgetting", "drop"})
_NAMED = 3  # failed checks that the sentence names; the others are counted


@dataclass(frozen=True)
class Check:
    """A check of the final gate: its value, the bound that was held to the threshold.

    `interval` is the confidence interval of the value, where it has one; `unit` is that of all
    four. A difference of losses is that of the losses themselves: below 0 the model is the better.
    """

    name: str
    value: Any
    bound: Any
    threshold: Any
    passed: bool
    message: str
    interval: tuple[float, float] | None = None
    unit: measures.Unit = "number"

    @property
    def title(self) -> str:
        """The check's name as people read it."""
        kind, _, rest = self.name.partition(":")
        return kind.replace("_", " ") + (f" of {rest}" if rest else "")

    def write(self, value: Any) -> str:
        """Writes one of the check's numbers as people read it; differences are in points."""
        return measures.write(value, self.unit)

    def write_bound(self) -> str:
        """Writes the bound with the side of it that the true value lies on, or a dash."""
        if self.bound is None:
            return "–"
        written = self.write(self.bound)
        beside = 0 if self.value is None else self.bound - self.value
        if not beside or written.startswith(("<", ">")):
            return written
        return f"{'≥' if beside < 0 else '≤'} {written}"

    def write_interval(self) -> str:
        """Writes the interval, or a dash."""
        return "–" if self.interval is None else measures.write_interval(*self.interval, self.unit)


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
    return Outcome(
        kind=kind,
        label=LABELS[kind],
        lead=sentence(record),
        reasons=reasons if kind != "unchanged" else [],
        advice=_ADVICE.get(kind, ""),
        checks=checks(record.verdict),
        warnings=_said(record, "warning"),
        notes=_said(record, "note"),
        log=record.log_tail() if kind in ("failed", "open") else [],
    )


def checks(verdict: Mapping[str, Any] | None) -> list[Check]:
    """Returns the gate's checks from verdict.json, the failed ones first."""
    told = verdict or {}
    found = [_check(check, _unit(check["name"], told)) for check in told.get("checks", [])]
    return sorted(found, key=lambda check: check.passed)


def sentence(record: Record) -> str:
    """Returns the answer in one sentence: what became of the run, and what decided it."""
    result, model = record.result, record.request.config["push"]["model_name"]
    kind = result.outcome if result else "open"
    if kind == "pushed" and result:
        than = _than_before(record.verdict)
        return f"The model passed every check and is version {result.version} of “{model}”{than}."
    if kind == "unchanged" and result:
        return (
            f"Data, configuration and code are those of version {result.version} of “{model}”: "
            "nothing was pushed."
        )
    if kind == "not_blessed":
        return _blocked(checks(record.verdict))
    where = stopped_at(record)
    at = f" at {where}" if where else ""
    if kind == "invalid_data":
        return f"The data was refused{at}, and no model was pushed."
    if kind == "failed":
        if result and result.version is not None:
            return (
                f"The run stopped{at} with an error, after its model had become version "
                f"{result.version} of “{model}”."
            )
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


def _than_before(verdict: Mapping[str, Any] | None) -> str:
    """Returns how a pushed model compares with the version before, as the end of a sentence."""
    told = (verdict or {}).get("champion") or {}
    before = "the one before" if told.get("version") is None else f"version {told['version']}"
    said = told.get("verdict")
    if said == "undecided":
        return f"; the test images are too few to tell it from {before}"
    if said == "worse":
        return f"; it is worse than {before}, and was let pass (evaluate.on_worse)"
    return f", {said} than {before}" if said else ""


def _blocked(found: Sequence[Check]) -> str:
    failed = [check for check in found if not check.passed]
    if not failed:
        return "The run finished and the model stays out."
    named = [_shortfall(check) for check in failed[:_NAMED]]
    if len(failed) > _NAMED:
        named.append(f"{len(failed) - _NAMED} more")
    listed = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
    return f"The model stays out: {len(failed)} of {len(found)} checks failed, {listed}."


def _shortfall(check: Check) -> str:
    """Returns a failed check in a few words: what was found, and what was asked."""
    value = check.bound if check.bound is not None else check.value
    if value is None or check.threshold is None or value == check.threshold:
        return check.title
    found = check.write(value) if check.bound is None else check.write_bound()
    unit = " points" if check.unit == "points" else ""
    return f"{check.title} ({found}{unit}, asked {check.write(check.threshold)}{unit})"


def _unit(name: str, told: Mapping[str, Any]) -> measures.Unit:
    kind, _, head = name.partition(":")
    if kind in _SHARES:
        return "share"
    if kind != "champion":
        return "points" if kind in _DIFFERENCES else "number"
    # The label is compared by the metric that was chosen, a head by its error or its accuracy.
    if not head:
        return measures.unit_of_difference((told.get("champion") or {}).get("metric", "accuracy"))
    values = ((told.get("heads") or {}).get(head) or {}).get("kind") == "regression"
    return measures.unit_of_difference("mae" if values else "accuracy")


def _check(check: Mapping[str, Any], unit: measures.Unit) -> Check:
    value, bound, threshold = (check.get(key) for key in ("value", "bound", "threshold"))
    low, high = check.get("interval") or (None, None)
    if unit == "change":  # verdict.json has gains
        value, bound, threshold = (measures.turned(it) for it in (value, bound, threshold))
        low, high = measures.turned(high), measures.turned(low)
    return Check(
        name=check["name"],
        value=value,
        bound=bound,
        threshold=threshold,
        passed=bool(check["passed"]),
        message=check.get("message") or "",
        interval=None if low is None or high is None else (low, high),
        unit=unit,
    )


def _said(record: Record, kind: str) -> list[str]:
    """Returns the texts of the notes or warnings, each once."""
    texts = (without_secrets(str(event.get("text", ""))) for event in record.of_kind(kind))
    return list(dict.fromkeys(texts))
