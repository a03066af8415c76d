"""Why retrain: a pure function from what is known to a decision with its reasons and numbers.

It reads no file and no clock. Each trigger that is on gives a finding, fired or not; one that
fired makes a training due.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from pipeline.config import Retrain
from pipeline.retrain.labels import Contradicted

_DAY = 86_400.0
# One-sided 95 % of the normal distribution: what a fall of accuracy must exceed to be no chance.
_Z = 1.645
# Images that lie further off than this many times what chance shows are of another kind: there the
# champion's word against the labels counts for little.
_STRANGE = 2.0


@dataclass(frozen=True)
class SpanEvidence:
    """What is known of one new span.

    Attributes:
      number: the span's.
      images: that ingest kept.
      label_drift: L-infinity distance of its classes' shares from the champion's data.
      fact_drift: Jensen-Shannon divergence of each fact from the champion's data.
      new_classes: names that the champion does not know.
      asked: images that the champion was asked about.
      correct: how many it got right.
      moved: how far its images lie from the champion's own, in the champion's features.
      chance: how far samples of the champion's own images lie from each other.
      labels: what the champion says against its labels; None where it was not asked.
    """

    number: int
    images: int
    label_drift: float | None = None
    fact_drift: Mapping[str, float] = field(default_factory=dict)
    new_classes: tuple[str, ...] = ()
    asked: int = 0
    correct: int = 0
    moved: float | None = None
    chance: float = 0.0
    labels: Contradicted | None = None


@dataclass(frozen=True)
class Champion:
    """The version that is served: when it was published (seconds since 1970), its accuracy.

    `images` are all that its run was given, those that judged it among them; 0: not known.
    """

    version: int
    published: float
    accuracy: float | None = None
    test_images: int = 0
    images: int = 0


@dataclass(frozen=True)
class Situation:
    """All that a decision depends on.

    `scheduled` is the last time that the cron expression names before `now`, `attempted` when the
    last training began; both in seconds since 1970. `asked_for` is an operator's word, `alarm` what
    `safelight monitor` found about the version that is served, and no training has answered yet.
    """

    now: float
    champion: Champion | None
    new: Sequence[SpanEvidence]
    usable: int
    scheduled: float | None = None
    attempted: float | None = None
    asked_for: str = ""
    alarm: str = ""


@dataclass(frozen=True)
class Finding:
    """What one trigger said: its figure, the bound it was held to, and whether it fired."""

    trigger: str
    fired: bool
    value: float | None
    bound: float | None
    message: str


@dataclass(frozen=True)
class Decision:
    """Whether a training is due, with every finding; what only informs stands in `notes`."""

    due: bool
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def reasons(self) -> list[str]:
        """Returns what speaks for a training; without any, all that was looked at."""
        fired = [one.message for one in self.findings if one.fired]
        return fired or [one.message for one in self.findings]

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-serializable values."""
        return asdict(self)


def decide(situation: Situation, options: Retrain) -> Decision:
    """Returns whether a training is due, and why."""
    if not situation.usable:
        return Decision(False, (_no("data", "There is no complete span to train on."),))
    if situation.champion is None:
        message = "Nothing is served yet: the first training is due."
        return Decision(True, (Finding("first", True, None, None, message),))
    findings = tuple(_findings(situation, situation.champion, options))
    if not findings:
        findings = (_no("none", "No trigger is on: see the keys of [retrain]."),)
    return Decision(any(one.fired for one in findings), findings, tuple(_notes(situation)))


def _findings(situation: Situation, champion: Champion, options: Retrain) -> Iterator[Finding]:
    if situation.asked_for:
        message = f"An operator asked for it: {situation.asked_for}"
        yield Finding("operator", True, None, None, message)
    if situation.alarm:
        yield Finding("monitor", True, None, None, f"Monitoring raised an alarm: {situation.alarm}")
    yield from _amounts(situation, champion, options)
    if options.new_classes:
        names = sorted({name for span in situation.new for name in span.new_classes})
        said = f"{len(names)} new classes that the champion does not know"
        yield _at_least("new_classes", len(names), 1, said)
    yield from _times(situation, champion, options)
    for span in situation.new:
        yield from _drift(span, options)
        yield from _accuracy(span, champion, options)


def _amounts(situation: Situation, champion: Champion, options: Retrain) -> Iterator[Finding]:
    if options.new_spans:
        count = len(situation.new)
        yield _at_least("new_spans", count, options.new_spans, f"{count} new spans")
    images = sum(span.images for span in situation.new)
    if options.new_images:
        yield _at_least("new_images", images, options.new_images, f"{images:,} new images")
    if options.growth and champion.images:
        share = images / champion.images
        said = (
            f"{images:,} new images are {share:.2f} of the {champion.images:,} that version "
            f"{champion.version} comes from"
        )
        yield _at_least("growth", share, options.growth, said)


def _times(situation: Situation, champion: Champion, options: Retrain) -> Iterator[Finding]:
    if options.max_age_days:
        # After a clock that jumped back the champion is from the future: its age is nothing.
        days = max(0.0, situation.now - champion.published) / _DAY
        said = f"version {champion.version} is {days:.1f} days old"
        yield _at_least("age", days, options.max_age_days, said)
    if options.cron and situation.scheduled is not None:
        # One from the future, before the clock jumped back, would keep the schedule for as long.
        published = champion.published if champion.published <= situation.now else 0.0
        last = max(published, situation.attempted or 0.0)
        fired = last < situation.scheduled <= situation.now
        said = "came since the last training" if fired else "has not come since the last training"
        yield Finding("cron", fired, None, None, f"The schedule {options.cron!r} {said}.")


def _drift(span: SpanEvidence, options: Retrain) -> Iterator[Finding]:
    name = f"span {span.number}"
    if options.label_drift and span.label_drift is not None:
        said = f"the classes of {name} have moved by {span.label_drift:.3f} (L-infinity)"
        yield _above("label_drift", span.label_drift, options.label_drift, said)
    if options.embedding_drift and span.moved is not None:
        bound = round(options.embedding_drift * span.chance, 3)
        said = (
            f"the content of {name} has moved by {span.moved:.3f} in the champion's features (MMD),"
            f" where chance shows {span.chance:.3f}"
        )
        yield _above("embedding_drift", span.moved, bound, said)
    if options.fact_drift and span.fact_drift:
        worst = max(span.fact_drift, key=lambda fact: span.fact_drift[fact])
        value = span.fact_drift[worst]
        said = f"{worst} of {name} has moved by {value:.3f} (Jensen-Shannon)"
        yield _above("fact_drift", value, options.fact_drift, said)


def _accuracy(span: SpanEvidence, champion: Champion, options: Retrain) -> Iterator[Finding]:
    """The fall beyond what samples of these sizes show by chance."""
    if not options.accuracy_drop or not span.asked or champion.accuracy is None:
        return
    share = span.correct / span.asked
    noise = math.sqrt(
        _variance(share, span.asked) + _variance(champion.accuracy, champion.test_images or 1)
    )
    drop = champion.accuracy - share
    surely = drop - _Z * noise
    said = (
        f"version {champion.version} gets {share:.3f} of span {span.number} right, "
        f"{drop:+.3f} below its {champion.accuracy:.3f}, surely {max(0.0, surely):.3f}"
    )
    yield _above("accuracy_drop", surely, options.accuracy_drop, said)


def doubts(span: SpanEvidence, options: Retrain) -> str:
    """Returns why a span's labels can't be trusted; "" where they can.

    Wrong labels and new content both make the champion disagree. New content also looks other in
    its features, which takes no notice of labels; where it does, nothing is held against them.
    """
    found = span.labels
    if not options.label_noise or found is None or not found.labelled or not found.usual_images:
        return ""
    if span.moved is not None and span.moved > _STRANGE * span.chance:
        return ""
    share = found.contradicted / found.labelled
    noise = math.sqrt(_variance(share, found.labelled) + _variance(found.usual, found.usual_images))
    surely = share - found.usual - _Z * noise
    if surely <= options.label_noise:
        return ""
    return (
        f"Its labels look wrong: on {share:.0%} of {found.labelled:,} images the champion is sure "
        f"of another class, where {found.usual:.0%} is usual, and the images look as ever. That is "
        f"surely {surely:.2f} more; retrain.label_noise is {options.label_noise:g}. Look at them. "
        f"If they are right, take the span back: safelight retrain --release-span {span.number}"
    )


def _variance(share: float, images: int) -> float:
    # Never zero: half an image of either kind is added, as one all right proves little.
    smoothed = (share * images + 0.5) / (images + 1)
    return smoothed * (1 - smoothed) / images


def _notes(situation: Situation) -> Iterator[str]:
    for span in situation.new:
        if span.new_classes:
            names = ", ".join(span.new_classes)
            yield f"Span {span.number} has classes that the champion does not know: {names}."


def _at_least(trigger: str, value: float, bound: float, said: str) -> Finding:
    return _compared(trigger, value >= bound, value, bound, said)


def _above(trigger: str, value: float, bound: float, said: str) -> Finding:
    return _compared(trigger, value > bound, value, bound, said)


def _compared(trigger: str, fired: bool, value: float, bound: float, said: str) -> Finding:
    text = said[0].upper() + said[1:]
    verdict = "retrain" if fired else "not enough"
    return Finding(trigger, fired, value, bound, f"{text}; the bound is {bound:g}: {verdict}.")


def _no(trigger: str, message: str) -> Finding:
    return Finding(trigger, False, None, None, message)


def scheduled(cron: str, now: float) -> float | None:
    """Returns the last time that the expression names at or before `now` (UTC)."""
    if not cron:
        return None
    from croniter import croniter

    # get_prev looks strictly before: the time itself counts, too.
    behind = datetime.fromtimestamp(now, timezone.utc) + timedelta(microseconds=1)
    found: float = croniter(cron, behind).get_prev(float)
    return found
