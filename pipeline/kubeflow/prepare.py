"""The first step: looks at the data and at what is served, and resolves the run.

It does on the cluster what `safelight run` does before it starts its worker. Each node's execution
properties become an output parameter of its own, so that Kubeflow's cache sees what TFX's cache
would: a change re-runs what reads it, and no more.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import config as configuration
from pipeline import registry, runs, versions
from pipeline.config import Config, Effective
from pipeline.errors import ConfigError, UsageError
from pipeline.features import MODEL_FACTS
from pipeline.ingest.scan import Scan, scan
from pipeline.kubeflow import names, window
from pipeline.kubeflow.artifacts import ExecutorInput, write_output, write_parameter
from pipeline.kubeflow.record import Record
from pipeline.registry import RunInputs
from pipeline.runners import local
from pipeline.runs import Request
from pipeline.workdir import Workdir, refuse_inside

# In the registry: who pushed. Nothing of this run alone, which would push it anew each time.
_BY = "a run on Kubeflow"


def run(given: ExecutorInput, workdir: Workdir, record: Record) -> None:
    """Writes run.json, and the output parameter of every node.

    Raises:
      ConfigError: the overrides name what there is not, or a value that its key refuses.
      DataRefused: there is nothing to train on.
      UsageError: the champion named is none, or the workdir lies in the data.
    """
    values = given.parameters
    compiled = Config.model_validate_json(values[names.CONFIG])
    asked = _asked(compiled, values[names.DATA], record.run.root.name)
    # There from the start: the report of a run that fails here says what was asked.
    _write_request(record, asked)
    listed = window.parse(values[names.SPANS])
    _write_request(record, replace(asked, spans=listed))
    config = merge(compiled, values[names.OVERRIDES])
    if not listed:
        refuse_inside(workdir.root, values[names.DATA])
    with workdir.lock(wait=True):
        found = look_at(given, config, listed)
        request = resolve(config, found, workdir, values[names.CHAMPION], record.run.root.name)
        request = replace(request, spans=listed, origins=_origins(compiled, config))
        _write_request(record, request)
        local.keep_own_models(record.run, request)
    _give_properties(given, workdir, request)
    write_output(given, {})


def merge(config: Config, overrides: str) -> Config:
    """Returns the configuration with a run's overrides in it.

    Args:
      config: the compiled one.
      overrides: lines of `section.key=value`, or TOML with sections; "" for none.

    Raises:
      ConfigError: an unknown section or key, or a value that its key refuses.
    """
    lines = [line.strip() for line in overrides.splitlines() if line.strip()]
    if not lines:
        return config
    compiled = config.model_dump()
    # What was left open stays open: a preset's own settings come before the defaults.
    compiled["train"] = config.train.model_dump(include=config.train.model_fields_set)
    effective = _read(overrides, lines, compiled)
    for key in effective.origins:
        if key.startswith("kubeflow."):
            raise ConfigError(
                f"{names.OVERRIDES}: {key} is fixed when the pipeline is compiled. "
                f"Compile it again with --set {key}=…"
            )
    _check_steps(config, effective.config)
    return effective.config


def _origins(compiled: Config, config: Config) -> dict[str, str]:
    """Returns {section.key: who set it} of the values that are not the defaults."""
    default = {key: value for key, value, _ in configuration.entries(Config())}
    before = {key: value for key, value, _ in configuration.entries(compiled)}
    return {
        key: "the compiled package" if value == before[key] else names.OVERRIDES
        for key, value, _ in configuration.entries(config)
        if value != before[key] or value != default[key]
    }


def _check_steps(compiled: Config, wanted: Config) -> None:
    """Refuses overrides that would need other steps than those of the package."""
    there, asked = _optional_steps(compiled), _optional_steps(wanted)
    for key, (step, on, value) in asked.items():
        if on != there[key][1]:
            raise ConfigError(
                f"{names.OVERRIDES}: {key} = {value!r}: whether there is a step {step} is fixed "
                f"when the pipeline is compiled. Compile it again with --set {key}=…"
            )


def _optional_steps(config: Config) -> dict[str, tuple[str, bool, Any]]:
    """Returns {key: (step, whether there is one, the key's value)}."""
    return {
        "tune.algorithm": ("Tuner", config.tune.algorithm != "off", config.tune.algorithm),
        "robustness.images": (
            "Robustness", config.robustness.images > 0, config.robustness.images
        ),
        "explain.images": ("Explainer", config.explain.images > 0, config.explain.images),
        "variants.names": ("VariantMaker", bool(config.variants.names), config.variants.names),
    }  # fmt: skip


def look_at(given: ExecutorInput, config: Config, listed: Sequence[Mapping[str, Any]] = ()) -> Scan:
    """Returns the scan of the data, wherever it lies; of a window, that of all its spans.

    Raises:
      DataRefused: there is nothing to train on, or a span has changed.
    """
    fingerprint = given.parameters[names.FINGERPRINT]
    imported = given.inputs.get(names.IMPORTED)
    if listed:
        found = window.look_at(given.parameters[names.DATA], listed, config.ingest)
    elif imported is None:
        found = scan(given.parameters[names.DATA], config.ingest)
    else:
        settle(imported.path)
        found = scan(str(imported.path), config.ingest, verify=not fingerprint)
    if not fingerprint:
        return found
    return Scan.from_dict({**found.to_dict(), "fingerprint": fingerprint})


def settle(folder: Path) -> None:
    """Gives downloaded files one modification time: when they were downloaded says nothing.

    It is part of the data's fingerprint, and would make every run's data new.
    """
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (0, 0), follow_symlinks=False)


def resolve(config: Config, found: Scan, workdir: Workdir, champion: str, run_name: str) -> Request:
    """Returns the request of this run; the workdir must be held.

    Args:
      config: with what the person left open.
      found: the data's scan.
      workdir: with the registry.
      champion: "" for the version that is served, "none", or a version's directory.
      run_name: the record's folder.

    Raises:
      UsageError: `champion` is no version of a model.
    """
    effective = Effective(config=config, origins={})
    named = partial(_named_champion, champion) if champion else None
    request = local.request(workdir, effective, found, run_name, named)
    # The workdir is let go until the push, which has to find the same version served.
    served = registry.open(workdir.serving(config.push.model_name)).current or 0
    return replace(
        request,
        lineage={**request.lineage, "by": _BY},
        inputs={**request.inputs, "served": served},
    )


def _named_champion(champion: str, models: registry.Registry) -> RunInputs:
    if champion == names.NO_CHAMPION:
        return RunInputs()
    path = Path(champion)
    facts = path / "assets.extra" / MODEL_FACTS
    if not facts.is_file():
        raise UsageError(
            f"The champion {champion!r} is no version of a model: {facts} is missing. Name a "
            f"directory below {models.root}, or leave the parameter empty for the one served."
        )
    classes = tuple(json.loads(facts.read_text(encoding="utf-8"))["classes"])
    known = [entry.version for entry in models.entries if models.path(entry.version) == path]
    columns = versions.known_columns(path)
    return RunInputs(classes, known[0] if known else None, champion, columns)


def _asked(config: Config, data: str, run_name: str) -> Request:
    """Returns what is known of a run before anything was looked at."""
    return Request(
        run_id=run_name,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        data=data,
        config=config.model_dump(mode="json"),
        origins={},
        chosen=[],
        scan={},
        lineage={},
        inputs={"known_classes": [], "champion": None, "champion_uri": "", "published": False},
        versions=local.versions(),
    )


def _write_request(record: Record, request: Request) -> None:
    if record.run.root.is_dir():
        # A second try of this step.
        runs.write_json(record.run.request, asdict(request))
    else:
        record.run.write_request(request)


def _give_properties(given: ExecutorInput, workdir: Workdir, request: Request) -> None:
    # Here TensorFlow and TFX are imported.
    from pipeline.graph import Given
    from pipeline.kubeflow import graph, spans, spec

    config = Config.model_validate(request.config)
    nodes = graph.nodes(
        config,
        Given(
            data=request.data,
            known_classes=tuple(request.inputs["known_classes"]),
            known_columns=request.inputs["known_columns"],
            champion_uri=request.inputs["champion_uri"],
            lineage=_lineage(request),
            artifacts="unused",
            checkpoints=str(workdir.checkpoints),
            serving_dir=str(workdir.serving(config.push.model_name)),
            spans=tuple(request.spans),
        ),
    )
    for node in nodes:
        key = spec.properties_key(node.id)
        # The nodes of spans have no tasks of their own.
        if not spans.of_a_span(node.id):
            write_parameter(given, key, graph.properties(node, config, nodes))


def _lineage(request: Request) -> dict[str, Any]:
    given = ("known_classes", "known_columns", "champion", "served")
    return {**request.lineage, **{key: request.inputs[key] for key in given}}


def _read(
    overrides: str, lines: Sequence[str], compiled: Mapping[str, Mapping[str, Any]]
) -> Effective:
    """Reads the overrides over what was compiled, as `--set` and a profile are read.

    What is wrong is told in terms of the parameter that they came by.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
        file.write(overrides)
        file.flush()
        try:
            if any(line.startswith("[") for line in lines):
                return configuration.load(file.name, base=compiled)
            given = [line for line in lines if line[0] != "#"]
            return configuration.load(None, given, base=compiled)
        except ConfigError as error:
            text = str(error)
            for origin in (f"profile {file.name}", file.name, "--set "):
                text = text.replace(
                    origin, f"{names.OVERRIDES}: " if origin[0] == "-" else "overrides"
                )
            raise ConfigError(text, error.reasons) from None
