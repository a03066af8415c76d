"""What a search tries: the space over keys of train, its values, and what became of each trial.

Plain Python: a space is checked when the configuration is read, before anything runs. keras-tuner
knows numbers and strings alone, so every other value travels through it as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import ValidationError

from pipeline import presets
from pipeline.errors import ConfigError, bounded, did_you_mean

if TYPE_CHECKING:
    from pipeline.config import Train, Transform, Tune

# The devices are the process's, and its trials share them; the heads are the data's.
FIXED: Final = ("strategy", "devices", "workers", "tpu", "heads", "cache")
# What the loss on eval is made of: a search by it compares trials that have these in common.
_OF_THE_LOSS: Final = ("loss", "focal_gamma", "label_smoothing", "label_weight")
NETWORKS: Final = ("preset", "model", "backbone", "feature_vector")
# Train as it was given, beside the space of a run and beside the values of its best trial.
GIVEN: Final = "(given)"

BEST_FILE: Final = "best_hyperparameters.txt"
RESULTS_FILE: Final = "tuner_results.json"

_BOUNDS: Final = ("min", "max", "log", "step")
# keras-tuner's own entries beside the values, of Hyperband.
_OWN: Final = "tuner/"

Values = dict[str, Any]
State = Literal["completed", "failed"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of these values; `encoded` as keras-tuner takes them, all of one type."""

    encoded: tuple[int, ...] | tuple[float, ...] | tuple[str, ...]
    ordered: bool


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `minimum` to `maximum`, both included; with `log`, `step` is a factor."""

    minimum: float
    maximum: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether only integers are meant: all that was given is."""
        given = [self.minimum, self.maximum, *([] if self.step is None else [self.step])]
        return all(isinstance(one, int) for one in given)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one trial: a row of tuner_results.json.

    Attributes:
      trial: counted from 1.
      values: of the keys searched over, by their names in train.
      state: whether it came to a score.
      score: the objective's best value over the epochs; None of a failed one.
      epochs: how many it came to, those of the trial that it went on from included.
      seconds: its own.
      reason: why it failed.
      best: whether Trainer gets its values.
    """

    trial: int
    values: Values = field(default_factory=dict)
    state: State
    score: float | None = None
    epochs: int = 0
    seconds: float = 0.0
    reason: str = ""
    best: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON object."""
        return asdict(self)


def parse(space: Mapping[str, Any]) -> dict[str, Choice | Range]:
    """Returns what to try for each key of train.

    Raises:
      ConfigError: something that is neither a list of values nor a table of bounds.
    """
    return {key: _parsed(key, what) for key, what in space.items() if key != GIVEN}


def named(key: str, train: Train, tune: Tune) -> list[Any]:
    """Returns what a key of train may be in the run: the values of the space, or train's own."""
    if tune.algorithm == "off" or key not in tune.space:
        return [getattr(train, key)]
    return _tried(_parsed(key, tune.space[key]))


def settled(tune: Tune, train: Train, keys: Iterable[str]) -> Tune:
    """Returns tune for the processes of a run, which start elsewhere and get train completed.

    Paths in the space are absolute, and beside it is what `given` finds.

    Args:
      tune: the section, checked.
      train: completed.
      keys: those of train that somebody set, or that no value of the space bears on.
    """
    if tune.algorithm == "off":
        return tune
    space = {
        key: [presets.absolute(value) for value in what] if key in presets.PATHS else what
        for key, what in tune.space.items()
    }
    space[GIVEN] = train.model_dump(mode="json", include=set(keys))
    return tune.model_copy(update={"space": space})


def given(train: Train, beside: Mapping[str, Any]) -> Train:
    """Returns train as it was given: what the values are put into.

    Args:
      train: completed; returned as it is where `beside` has nothing.
      beside: the space of a settled section tune, or the content of best_hyperparameters.txt.
    """
    return type(train).model_validate(beside[GIVEN]) if GIVEN in beside else train


def check(tune: Tune, train: Train) -> None:
    """Refuses a search that could not be run; `off` is never refused.

    Args:
      tune: with the space.
      train: what each trial has in common, completed if tune is settled.

    Raises:
      ConfigError: an unknown key, one that a trial can't have to itself, bounds that make no
        sense, or a value that train refuses.
    """
    if tune.algorithm == "off":
        return
    if not tune.space:
        raise ConfigError(
            f"tune.algorithm is {tune.algorithm}, and tune.space is empty. Say what to try, as in "
            "[tune.space] learning_rate = {min = 0.0001, max = 0.01, log = true}."
        )
    if train.strategy == "multi_worker":
        raise ConfigError(
            "tune.algorithm and train.strategy = multi_worker can't go together: a search runs in "
            "one process. Search with another strategy first, and train with what it found."
        )
    fixed = [*FIXED, *(["epochs"] if tune.algorithm == "hyperband" else [])]
    train = given(train, tune.space)
    for key in [key for key in tune.space if key != GIVEN]:
        if key not in type(train).model_fields:
            known = [name for name in type(train).model_fields if name not in fixed]
            raise ConfigError(f"tune.space: train has no key {key!r}.{did_you_mean(key, known)}")
        if key in fixed:
            raise ConfigError(
                f"tune.space: {key} can't differ between trials"
                + (": hyperband sets it." if key == "epochs" else ", which share one process.")
                + f" Set train.{key} instead."
            )
    _check_networks(tune, train)
    space = {key: _tried(what) for key, what in parse(tune.space).items()}
    if tune.objective == "eval_loss" and (of_loss := [k for k in _OF_THE_LOSS if k in tune.space]):
        raise _apart(of_loss[0])
    # Weights may need a backbone that only the space names: one value of each is always there.
    base = {**train.model_dump(), **{key: values[0] for key, values in space.items()}}
    for key, values in space.items():
        _check_values(type(train), base, key, values)


def check_networks(tune: Tune, train: Train, transform: Transform) -> None:
    """Refuses networks that can't take the images or be compared, and weights that aren't there.

    Args:
      tune: settled.
      train: completed as far as it is the same for every trial.
      transform: the section, its image size and channels set.

    Raises:
      ConfigError: the network, or what its losses differ by, is named.
    """
    if tune.algorithm == "off":
        return
    space = {key: _tried(what) for key, what in parse(tune.space).items()}
    first = {key: values[0] for key, values in space.items()}
    # Weights, too: a file that is not there would fail its trials, one after the other.
    for key in (*NETWORKS, "weights"):
        common = given(train, tune.space)
        wholes = [merged(common, {**first, key: v}, transform) for v in space.get(key, ())]
        for of_loss in _OF_THE_LOSS if tune.objective == "eval_loss" else ():
            if len({getattr(whole, of_loss) for whole in wholes}) > 1:
                raise _apart(key, f", for their train.{of_loss} differs unless you set it")


def merged(train: Train, values: Mapping[str, Any], transform: Transform) -> Train:
    """Returns train with these values, completed as if they had been given in it.

    Args:
      train: as it was given; without values it is returned as it is.
      values: by key of train.
      transform: the section, its image size and channels set.

    Raises:
      ConfigError: values that can't go together.
    """
    if not values:
        return train
    base = train.model_dump(include=train.model_fields_set)
    try:
        return _completed(type(train).model_validate({**base, **values}), transform)
    except ValidationError as error:
        raise ConfigError(f"With {shown(values)}: {_reason(error)}") from None
    except ConfigError as error:
        raise ConfigError(f"With {shown(values)}: {error}") from None


def _completed(train: Train, transform: Transform) -> Train:
    assert transform.image_size
    assert transform.channels
    return presets.complete(
        train,
        image_size=transform.image_size,
        channels=transform.channels,
        normalize=transform.normalize,
    )


def of_trial(train: Train, values: Mapping[str, Any], epochs: int, transform: Transform) -> Train:
    """Returns the configuration of a trial: train as given with its values, for so many epochs.

    A trial is neither profiled nor pictured. Of phases, the first ones are trained, as far as the
    epochs go; where the values name epochs of their own, those are trained. The rate's rise takes
    at most half of a trial.

    Raises:
      ConfigError: values that can't go together.
    """
    wanted = int(values.get("epochs") or epochs)
    whole = merged(train, values, transform)
    phases: list[dict[str, Any]] = []
    left = wanted
    for phase in whole.phases:
        if left > 0:
            phases.append({**phase, "epochs": min(phase["epochs"], left)})
            left -= phase["epochs"]
    lengths = [phase["epochs"] for phase in phases] or [wanted]
    changed = {
        "phases": tuple(phases),
        "epochs": sum(lengths),
        "warmup_epochs": min(whole.warmup_epochs, min(lengths) / 2),
        "board_images": 0,
        "profile_steps": "",
    }
    return whole.model_copy(update=changed)


def decoded(hyperparameters: Mapping[str, Any]) -> Values:
    """Returns the values, by key of train, that keras-tuner holds; its own entries are left out."""
    return {
        key: _decoded(value) for key, value in hyperparameters.items() if not key.startswith(_OWN)
    }


def found(hyperparameters: Mapping[str, Any] | None) -> Values:
    """Returns the best values of a search: what Tuner left for Trainer; {} without a search.

    Args:
      hyperparameters: the content of best_hyperparameters.txt, keras-tuner's `get_config()`.
    """
    return decoded(hyperparameters["values"]) if hyperparameters else {}


def with_best(rows: Sequence[Row], trial: int) -> list[Row]:
    """Returns the rows with that trial, and no other, marked as the best."""
    return [replace(row, best=row.trial == trial) for row in rows]


def shown(values: Mapping[str, Any]) -> str:
    """Returns values for people: `learning_rate 0.00123, optimizer sgd`."""
    return ", ".join(f"{key} {_short(value)}" for key, value in values.items())


def _decoded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.15g}")  # keras-tuner counts steps up, past the bound by a rounding
    return json.loads(value) if isinstance(value, str) else value


def _parsed(key: str, what: Any) -> Choice | Range:
    if isinstance(what, Mapping):
        return _range(key, what)
    if isinstance(what, list | tuple) and what:
        return _choice(list(what))
    raise ConfigError(
        f"tune.space.{key} is {what!r}; expected a list of values, as in [32, 64], or a table, "
        "as in {min = 0.0001, max = 0.01, log = true}."
    )


def _choice(values: list[Any]) -> Choice:
    # True is an integer to Python, and to keras-tuner.
    if all(isinstance(one, int) and not isinstance(one, bool) for one in values):
        return Choice(encoded=tuple(sorted(values)), ordered=True)
    if all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
        return Choice(encoded=tuple(sorted(float(one) for one in values)), ordered=True)
    return Choice(encoded=tuple(json.dumps(one) for one in values), ordered=False)


def _range(key: str, what: Mapping[str, Any]) -> Range:
    where = f"tune.space.{key}"
    for name in what:
        if name not in _BOUNDS:
            raise ConfigError(f"{where} has no key {name!r}.{did_you_mean(str(name), _BOUNDS)}")
    for name in ("min", "max"):
        if name not in what:
            raise ConfigError(f"{where} lacks {name}; expected both min and max.")
    for name in ("min", "max", "step"):
        value = what.get(name, 1)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(f"{where}.{name} is {value!r}; expected a number.")
    low, high, log, step = what["min"], what["max"], what.get("log", False), what.get("step")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log is {log!r}; expected true or false.")
    if low >= high:
        raise ConfigError(f"{where}: min {low} is not below max {high}.")
    if log and low <= 0:
        raise ConfigError(f"{where}: log needs a min above 0; it is {low}.")
    if step is not None and step <= (1 if log else 0):
        raise ConfigError(
            f"{where}: step is {step}; expected more than {1 if log else 0}"
            + (" (with log, it is a factor)." if log else ".")
        )
    return Range(minimum=low, maximum=high, log=log, step=step)


def _apart(key: str, why: str = "") -> ConfigError:
    return ConfigError(
        f"tune.space.{key} can't go with tune.objective=eval_loss{why}: the losses of its trials "
        "can't be compared. Set tune.objective=eval_accuracy."
    )


def _check_networks(tune: Tune, train: Train) -> None:
    """The network is named once: by train, or by one key of the space."""
    named = [f"train.{key}" for key in NETWORKS if getattr(train, key) and key not in tune.space]
    named += [f"tune.space.{key}" for key in NETWORKS if key in tune.space]
    if len(named) > 1:
        raise ConfigError(f"{bounded(named)} each name the network; keep one of them.")


def _tried(what: Choice | Range) -> list[Any]:
    if isinstance(what, Range):
        return [what.minimum, what.maximum]
    return [_decoded(value) for value in what.encoded]


def _check_values(
    section: type[Train], base: Mapping[str, Any], key: str, values: Sequence[Any]
) -> None:
    refused = {}
    for value in values:
        try:
            section.model_validate({**base, key: value})
        except ValidationError as error:
            refused[json.dumps(value)] = _reason(error)
    if refused:
        raise ConfigError(
            f"tune.space.{key}: train.{key} refuses {bounded(list(refused))}: "
            f"{next(iter(refused.values()))}"
        )


def _reason(error: ValidationError) -> str:
    message = error.errors()[0]["msg"].removeprefix("Value error, ")
    return message if message.endswith(".") else f"{message}."


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
