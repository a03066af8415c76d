"""Why retrain, and what holds it back: pure functions, no file and no clock."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import pytest

from pipeline import config
from pipeline.config import Retrain
from pipeline.errors import ConfigError
from pipeline.retrain import budget, policy
from pipeline.retrain.budget import Attempt
from pipeline.retrain.labels import Contradicted
from pipeline.retrain.ledger import Ledger
from pipeline.retrain.policy import Champion, Situation, SpanEvidence

DAY = 86_400.0
NOW = 100 * DAY
CHAMPION = Champion(version=3, published=90 * DAY, accuracy=0.9, test_images=1000, images=100)
QUIET = Retrain(new_spans=0)


def decide(options: Retrain, *new: SpanEvidence, **situation) -> policy.Decision:
    values = {"now": NOW, "champion": CHAMPION, "usable": 3, **situation}
    return policy.decide(Situation(new=new, **values), options)


def fired(decision: policy.Decision) -> set[str]:
    assert decision.due == any(one.fired for one in decision.findings)
    return {one.trigger for one in decision.findings if one.fired}


def test_first_training_and_nothing_to_train_on():
    assert fired(decide(QUIET, champion=None)) == {"first"}
    nothing = decide(Retrain(), usable=0)
    assert not nothing.due and "no complete span" in nothing.reasons[0]
    assert "No trigger is on" in decide(QUIET).reasons[0]


@pytest.mark.parametrize(
    ("options", "span", "trigger"),
    [
        (Retrain(), SpanEvidence(4, 50), "new_spans"),
        (QUIET.model_copy(update={"new_images": 50}), SpanEvidence(4, 50), "new_images"),
        (QUIET.model_copy(update={"growth": 0.5}), SpanEvidence(4, 50), "growth"),
        (
            QUIET.model_copy(update={"label_drift": 0.1}),
            SpanEvidence(4, 50, label_drift=0.11),
            "label_drift",
        ),
        (
            QUIET.model_copy(update={"fact_drift": 0.2}),
            SpanEvidence(4, 50, fact_drift={"contrast": 0.1, "brightness": 0.3}),
            "fact_drift",
        ),
        (
            QUIET.model_copy(update={"embedding_drift": 1.5}),
            SpanEvidence(4, 50, moved=0.31, chance=0.2),
            "embedding_drift",
        ),
        (
            QUIET.model_copy(update={"new_classes": True}),
            SpanEvidence(4, 50, new_classes=("fox",)),
            "new_classes",
        ),
        (
            QUIET.model_copy(update={"accuracy_drop": 0.05}),
            SpanEvidence(4, 500, asked=500, correct=390),
            "accuracy_drop",
        ),
    ],
)
def test_each_trigger_of_a_span(options, span, trigger):
    assert fired(decide(options, span)) == {trigger}
    calm = SpanEvidence(
        4,
        49,
        label_drift=0.1,
        fact_drift={"brightness": 0.2},
        asked=500,
        correct=440,
        moved=0.29,
        chance=0.2,
    )
    decision = decide(options.model_copy(update={"new_spans": 0}), calm)
    assert not decision.due
    # A no is told with its figures too.
    if trigger != "new_spans":
        [finding] = decision.findings
        assert finding.value is not None and finding.bound is not None
    assert json.loads(json.dumps(decision.to_dict()))["due"] is False


def test_a_fall_on_few_images_is_chance():
    options = QUIET.model_copy(update={"accuracy_drop": 0.05})
    assert not decide(options, SpanEvidence(4, 10, asked=10, correct=8)).due
    assert decide(options, SpanEvidence(4, 1000, asked=1000, correct=800)).due


def test_the_most_drifted_fact_is_named():
    options = QUIET.model_copy(update={"fact_drift": 0.2})
    decision = decide(options, SpanEvidence(4, 50, fact_drift={"contrast": 0.1, "brightness": 0.3}))
    assert decision.reasons == [
        "Brightness of span 4 has moved by 0.300 (Jensen-Shannon); the bound is 0.2: retrain."
    ]


def test_labels_are_doubted_beyond_chance_and_on_familiar_images_alone():
    def doubts(contradicted: int, labelled: int = 200, moved: float = 0.2, **options) -> str:
        labels = Contradicted(labelled, contradicted, usual=0.1, usual_images=200)
        span = SpanEvidence(4, labelled, moved=moved, chance=0.2, labels=labels)
        return policy.doubts(span, Retrain(**options))

    assert "on 60% of 200 images" in doubts(120)
    assert "--release-span 4" in doubts(120)
    assert doubts(40) == ""  # 20 %, where 10 % is usual
    assert doubts(4, labelled=10) == ""  # 40 % of ten images may be chance
    assert doubts(120, moved=0.5) == ""  # other images: the champion may well err
    assert doubts(120, label_noise=0.5) == "" and doubts(120, label_noise=0) == ""
    assert policy.doubts(SpanEvidence(4, 50), Retrain()) == ""


def test_age_and_a_clock_that_jumped_back():
    options = QUIET.model_copy(update={"max_age_days": 10.0})
    assert fired(decide(options)) == {"age"}
    assert not decide(options, now=99 * DAY).due
    assert not decide(options, now=50 * DAY).due


def test_schedule_fires_once_for_each_time():
    options = QUIET.model_copy(update={"cron": "0 3 * * *"})
    assert fired(decide(options, scheduled=99 * DAY)) == {"cron"}
    assert not decide(options, scheduled=99 * DAY, attempted=99.1 * DAY).due
    assert not decide(options, scheduled=80 * DAY).due  # the champion is younger
    assert not decide(options, scheduled=101 * DAY).due


def test_operators_word_and_new_classes():
    decision = decide(QUIET, SpanEvidence(4, 9, new_classes=("fox",)), asked_for="before the fair")
    assert fired(decision) == {"operator"} and "before the fair" in decision.reasons[0]
    assert "fox" in decision.notes[0]


def test_budget_of_a_day():
    options = Retrain(runs_per_day=2)
    done = [Attempt(NOW - 3600, False), Attempt(NOW - 60, False)]
    assert "runs_per_day is 2" in budget.hold(done, NOW, options)
    assert budget.hold(done, NOW + DAY, options) == ""
    assert budget.hold(done[1:], NOW, options) == ""
    # The clock jumped back: what was done still counts.
    assert "runs_per_day" in budget.hold(done, NOW - 50 * DAY, options)


def test_pause_doubles_with_each_failure_and_has_an_end():
    options = Retrain(backoff_minutes=30, max_backoff_hours=2, runs_per_day=100)

    def minutes(failures: int) -> float:
        failed = [Attempt(NOW - 10, True)] * failures
        return next(m for m in range(1000) if not budget.hold(failed, NOW + 60 * m, options))

    assert [minutes(count) for count in (0, 1, 2, 3, 4, 9)] == [0, 30, 60, 120, 120, 120]
    mended = [Attempt(NOW - 10, True), Attempt(NOW - 5, False)]
    assert budget.hold(mended, NOW, options) == ""
    # A failure from the future, before the clock jumped back: the full pause, not a year.
    assert "in 30 minutes" in budget.hold([Attempt(NOW + 365 * DAY, True)], NOW, options)


def test_ledger_tells_attempts_and_survives_a_torn_line(tmp_path):
    ledger = Ledger(tmp_path / "retrain")
    assert list(ledger.read()) == [] and ledger.attempts() == []
    ledger.add(1.0, "attempt", run_id="a")
    ledger.add(2.0, "outcome", run_id="a", outcome="not_blessed")
    ledger.add(3.0, "attempt", run_id="b")
    ledger.add(4.0, "outcome", run_id="b", outcome="failed")
    ledger.add(4.1, "attempt", run_id="c")
    ledger.add(4.2, "outcome", run_id="c", outcome="stopped")
    ledger.add(5.0, "attempt", run_id="killed")
    with open(tmp_path / "retrain" / "ledger.jsonl", "ab") as file:
        file.write(b'{"t": 6, "kind": "atte')
    ledger.add(7.0, "decision", due=False)
    assert ledger.attempts() == [
        Attempt(1.0, False),
        Attempt(3.0, True),
        Attempt(4.1, False),
        Attempt(5.0, True),
    ]
    last = ledger.last("decision")
    assert last is not None and last["t"] == 7.0


def test_what_is_decided_every_minute_is_written_once_an_hour(tmp_path):
    def decide(ledger: Ledger, minute: float, value: float = 0, held: str = "", due: bool = False):
        found = {"message": f"It is {int(value)}.", "value": value}
        ledger.decide(60 * minute, {"due": due, "held": held, "findings": [found]})

    ledger = Ledger(tmp_path)
    for minute in range(150):
        decide(ledger, minute, value=minute / 1000)
    assert [line["t"] / 60 for line in ledger.read()] == [0, 60, 120]
    # Other words, what holds a training back, and a clock that jumped back are news.
    decide(ledger, 150, value=1)
    decide(ledger, 151, held="pinned", due=True)
    decide(ledger, 152, held="pinned", due=True)
    decide(ledger, 1, held="pinned", due=True)
    assert [line["t"] / 60 for line in ledger.read()][3:] == [150, 151, 1]
    # So is what a training follows, and what another process decides.
    decide(ledger, 2, due=True)
    decide(ledger, 3, due=True)
    decide(Ledger(tmp_path), 4, due=True)
    assert [line["t"] / 60 for line in ledger.read()][6:] == [2, 3, 4]


def test_a_clock_that_jumped_back_holds_nothing_back_for_years(tmp_path):
    ledger, options = Ledger(tmp_path), Retrain(runs_per_day=1, cron="0 3 * * *")
    ledger.add(3650 * DAY, "attempt", run_id="a")
    assert "in 30 minutes" in budget.hold(ledger.attempts(), NOW, Retrain())
    ledger.add(NOW, "decision", due=True)
    assert "in 20 minutes" in budget.hold(ledger.attempts(), NOW + 600, Retrain())
    assert "runs_per_day" in budget.hold(ledger.attempts(), NOW + 600, options)
    assert budget.hold(ledger.attempts(), NOW + 2 * DAY, options) == ""
    # Nor does a champion of then keep the schedule.
    late = {"champion": Champion(3, published=3650 * DAY), "attempted": ledger.attempts()[0].at}
    options = QUIET.model_copy(update={"cron": "0 3 * * *"})
    assert not decide(options, scheduled=NOW - DAY, **late).due
    assert fired(decide(options, now=NOW + 2 * DAY, scheduled=NOW + DAY, **late)) == {"cron"}


def test_keys_that_are_refused():
    with pytest.raises(ConfigError, match=r"without \{YYYY\} it names no day"):
        config.load(overrides=["retrain.pattern={MM}-{DD}"])
    with pytest.raises(ConfigError, match="five fields of cron"):
        config.load(overrides=["retrain.cron=every day"])
    with pytest.raises(ConfigError, match="names no span"):
        config.load(overrides=["retrain.window=list"])
    with pytest.raises(ConfigError, match="retrain.pattern"):
        config.load(overrides=["retrain.pattern=data"])


def test_a_scheduled_time_is_one_moment_and_not_a_minute() -> None:
    three = datetime(2026, 3, 1, 3, tzinfo=timezone.utc).timestamp()
    for seconds in (0, 5, 59.9, 3600):
        assert policy.scheduled("0 3 * * *", three + seconds) == three
    assert policy.scheduled("0 3 * * *", three - 0.1) == three - DAY
    assert policy.scheduled("", three) is None
