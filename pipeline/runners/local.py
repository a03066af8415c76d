"""One machine: prepares a run, starts its worker, and waits for how it ends."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pipeline import events, hardware, heads, lineage, own_model, presets, registry, runs, search
from pipeline.blessing import calibration, intact
from pipeline.config import Config, Effective, Section
from pipeline.config.weights import check_classes
from pipeline.errors import ConfigError, SafelightError
from pipeline.ingest.scan import Scan
from pipeline.registry import Registry, RunInputs
from pipeline.runners import layers
from pipeline.runs import Request, Result, RunDir
from pipeline.workdir import Workdir

Watcher = Callable[[dict[str, Any]], None]

_PACKAGES = ("safelight", "tfx", "tensorflow", "keras", "apache-beam", "tensorflow-data-validation")
_FEW_IMAGES = 10_000
_POLL_SECONDS = 0.1
_STOP_SECONDS = 20.0
# Exported model, champion, checkpoints, TensorFlow's and Beam's scratch files.
_DISK_FLOOR = 500 * 1024**2


def prepare(workdir: Workdir, effective: Effective, scan: Scan) -> RunDir:
    """Writes the request of a new run of `scan`'s data; the workdir must be held.

    Raises:
      SafelightError: there is too little disk for the job, or no such devices as train.strategy
        asks for.
    """
    check(workdir, effective, scan)
    run_id = runs.new_run_id()
    run = RunDir(workdir.runs / run_id)
    asked = request(workdir, effective, scan, run_id)
    run.write_request(asked)
    keep_own_models(run, asked)
    return run


def check(workdir: Workdir, effective: Effective, scan: Scan) -> None:
    """Checks that this machine has what a run of `scan`'s data takes.

    Raises:
      SafelightError: there is too little disk for the job, or no such devices as train.strategy
        asks for.
    """
    _check_disk(workdir, scan)
    hardware.check(effective.config.train)


def keep_own_models(run: RunDir, request: Request) -> None:
    """Copies the source of train.model, or of each that a search may try, into the record."""
    config = Config.model_validate(request.config)
    for name in filter(None, search.named("model", config.train, config.tune)):
        source = own_model.source(name)
        shutil.copyfile(source, run.root / source.name)


def request(
    workdir: Workdir,
    effective: Effective,
    scan: Scan,
    run_id: str,
    judged_by: Callable[[Registry], RunInputs] | None = None,
) -> Request:
    """Returns what a run of `scan`'s data is asked and given; the workdir must be held.

    Args:
      workdir: with the registry.
      effective: the configuration, with what the person left open.
      scan: the data.
      run_id: the run's name.
      judged_by: says what the run is given; by default the registry does.
    """
    config, chosen = resolve(effective.config, scan)
    of_run = lineage.of(scan.fingerprint, config)
    models = registry.open(workdir.serving(config.push.model_name))
    if judged_by is not None:
        inputs = judged_by(models)
    else:
        inputs = models.resolve_inputs(of_run["data"], of_run["config"], of_run["code"])
    if scan.classes is not None:  # of TFRecords only the records know them: Trainer asks again
        check_classes(config.train, {*scan.classes, *inputs.known_classes})
    layers.check(config.train, workdir.cache)
    champion = models.champion()
    published = champion is not None and of_run == {key: getattr(champion, key) for key in of_run}
    if not published:  # else everything is in the cache, the comparison too
        intact.check(inputs.champion_uri)
    return Request(
        run_id=run_id,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        data=scan.data,
        config=config.model_dump(mode="json"),
        origins=effective.origins,
        chosen=chosen,
        scan=scan.to_dict(),
        lineage=of_run,
        inputs={
            "known_classes": list(inputs.known_classes),
            "known_columns": dict(inputs.known_columns),
            "champion": inputs.champion_version,
            "champion_uri": inputs.champion_uri,
            "published": published,
        },
        versions=versions(),
    )


def resolve(config: Config, scan: Scan) -> tuple[Config, list[str]]:
    """Returns the configuration with what was left open chosen from the data, and what was chosen.

    Raises:
      ConfigError: no image's header could be read, so that its size has to be given; or
        train.heads asks for columns of data that is no manifest; or the devices that
        train.strategy asks for can't share a batch.
    """
    heads.check_form(config, scan.form)
    if config.calibration.target_precision is not None:
        calibration.refuse_unknown(scan.classes or ())
    size: int | None = config.transform.image_size
    channels: int | None = config.transform.channels
    if size is None or channels is None:
        if scan.majority is None:
            raise ConfigError(
                f"The size of the images in {scan.data} can't be told from outside. "
                "Give it: --set transform.image_size=64 --set transform.channels=3."
            )
        width, height, likely_channels = scan.majority
        size = size or presets.choose_side(config.train, width, height)
        channels = channels or likely_channels
    train = presets.complete(
        config.train,
        image_size=size,
        channels=channels,
        normalize=config.transform.normalize,
        choose_preset=not any(key in config.tune.space for key in search.NETWORKS),
    )
    # Few images make few steps an epoch: smaller batches reach the same accuracy sooner.
    batch_size = config.train.batch_size or (32 if scan.files <= _FEW_IMAGES else 128)
    chosen: dict[str, dict[str, Any]] = {
        "transform": {"image_size": size, "channels": channels},
        "train": {**dict(train), "batch_size": batch_size},
    }
    sections = {name: getattr(config, name) for name in chosen}
    said = [
        f"{name}.{key} = {_shown(value)}"
        for name, keys in chosen.items()
        for key, value in keys.items()
        if getattr(sections[name], key) != value
    ]
    update = {name: section.model_copy(update=chosen[name]) for name, section in sections.items()}
    given = {*config.train.model_fields_set, "batch_size"}
    update["tune"] = search.settled(config.tune, update["train"], given)
    resolved = config.model_copy(update=update)
    hardware.check(resolved.train, here=False)
    search.check_networks(resolved.tune, resolved.train, resolved.transform)
    return resolved, said


def _shown(value: Any) -> str:
    """Returns a chosen value in a few words, without the options that are at their default."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Section):
        options = value.model_dump(mode="json", exclude_defaults=True)
        name = getattr(value, "name", "")
        rest = " ".join(f"{key}={option}" for key, option in options.items() if key != "name")
        return f"{name} {rest}".strip()
    return str(value)


def execute(
    workdir: Workdir, run: RunDir, lock: int, watch: Watcher, log_to_screen: bool = False
) -> Result:
    """Runs a prepared request in a worker and returns how it ended.

    Args:
      workdir: held by the caller.
      run: from `prepare`.
      lock: the workdir's lock, inherited by the worker: it stays held while the worker lives.
      watch: called with each event of the run as it comes.
      log_to_screen: TensorFlow's, Beam's and TFX's words go to standard error, not to the log.
    """
    with open(run.log, "ab") as log:
        output = sys.stderr if log_to_screen else log
        worker = subprocess.Popen(
            [sys.executable, "-m", "pipeline.runners.worker", str(workdir.root), str(run.root)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[lock],
            # A session of its own: Ctrl-C reaches this process alone, which stops the worker.
            start_new_session=True,
            env=_worker_environment(),
        )
        try:
            _follow(worker, run, watch)
        except BaseException:
            # Ctrl-C, or a terminal that is gone. Whoever gives the workdir back unlocks it for the
            # worker too: so that one ends first.
            _stop(worker)
            raise
    result = run.read_result()
    if result is not None:
        return result
    _without_result(workdir, run, worker.returncode)
    return _reported(workdir, run)


def versions() -> dict[str, str]:
    """Returns the versions of the packages that decide what a run does."""
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _worker_environment() -> dict[str, str]:
    # Trainer's and Tuner's children take the GPUs; the worker and whatever else it starts may not.
    environment = hardware.hidden()
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    environment["TF_USE_LEGACY_KERAS"] = "0"
    return environment


def _follow(worker: subprocess.Popen[bytes], run: RunDir, watch: Watcher) -> None:
    offset = 0
    while True:
        ended = worker.poll() is not None
        for behind, event in events.read(run.events, offset):
            watch(event)
            offset = behind
        if ended:
            return
        time.sleep(_POLL_SECONDS)


def _stop(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(_STOP_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C does not wait
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _reported(workdir: Workdir, run: RunDir) -> Result:
    """Makes the report of a run whose worker died, in a process that TensorFlow may talk in."""
    command = "from pipeline.cli import main; main()"
    arguments = ["report", run.root.name, "--workdir", str(workdir.root)]
    with open(run.log, "ab") as log:
        subprocess.run([sys.executable, "-c", command, *arguments], stdout=log, stderr=log)
    result = run.read_result()
    assert result is not None
    if run.report.is_file():
        result = replace(result, report=str(run.report))
        run.write_result(result)
    return result


def _without_result(workdir: Workdir, run: RunDir, returncode: int) -> None:
    """Writes the result of a worker that died before it could."""
    if returncode < 0:
        how = f"was ended by {signal.Signals(-returncode).name}"
        advice = (
            " (out of memory is the usual reason: see the system's log)"
            if returncode == -signal.SIGKILL
            else ""
        )
    else:
        how, advice = f"ended with exit code {returncode}", ""
    reason = (
        f"The worker {how}{advice}. {run.log} has its last words; "
        "run the same command again to go on from the last finished stage."
    )
    # It may have died behind its push, or within one that is finished here.
    serving = workdir.serving(run.read_request().config["push"]["model_name"])
    pushed = registry.open(serving).pushed_by(run.root.name)
    run.write_result(
        Result(
            run_id=run.root.name,
            outcome="failed",
            reasons=[reason],
            metrics=pushed.metrics if pushed else {},
            pushed_to=str(serving / str(pushed.version)) if pushed else None,
            version=pushed.version if pushed else None,
        )
    )


def _check_disk(workdir: Workdir, scan: Scan) -> None:
    free = shutil.disk_usage(workdir.root).free
    needed = int(scan.bytes * 1.2) + _DISK_FLOOR
    if free < needed:
        raise SafelightError(
            f"Too little disk for this job: {workdir.root} has {free / 1e9:.1f} GB free, "
            f"and about {needed / 1e9:.1f} GB are needed for {scan.bytes / 1e9:.1f} GB of images. "
            "Free some space, or name a --workdir on a larger disk."
        )
