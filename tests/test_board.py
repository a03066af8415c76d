"""What TensorBoard is given, read back from the logs, and the command that shows it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import heads, runs
from pipeline.commands import tensorboard
from pipeline.config import Train
from pipeline.errors import SafelightError, UsageError
from pipeline.trainer import board
from pipeline.workdir import open_workdir
from tests import signals

CLASSES = ("blue", "green", "red")


def batches(*, several: bool = False) -> tf.data.Dataset:
    """24 images whose channel says their class, in batches of 8; the last one's is unknown."""
    labels = np.arange(24) % 3
    pixels = np.zeros((24, 8, 8, 3), np.float32)
    pixels[np.arange(24), :, :, labels] = np.linspace(0.5, 0.9, 8)
    ids = labels.astype(np.int64)
    ids[-1] = -1
    targets = {"label": ids, "age": labels.astype(np.float32)} if several else ids
    return tf.data.Dataset.from_tensor_slices((pixels, targets)).batch(8)


def model(*, several: bool = False) -> keras.Model:
    """Takes the brightest channel for the class; it is right about everything."""
    pixels = keras.Input((8, 8, 3))
    average = keras.layers.GlobalAveragePooling2D()(pixels)
    label = keras.layers.Softmax(name="label")(average * 100.0)
    if not several:
        return keras.Model(pixels, keras.layers.Dense(3, use_bias=False)(label))
    return keras.Model(pixels, {"label": label, "age": keras.layers.Dense(1)(average)[:, 0]})


def images(folder: Path) -> dict[str, dict[int, list[np.ndarray]]]:
    """Returns {tag: {step: images}} of the logs below a folder."""
    found: dict[str, dict[int, list[np.ndarray]]] = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                _, _, *encoded = tf.make_ndarray(value.tensor)
                shown = [tf.io.decode_png(one).numpy() for one in encoded]
                found.setdefault(value.tag, {})[event.step] = shown
    return found


def fit(train: Train, run_dir: Path, epochs: int = 2, steps: int = 100) -> None:
    fitted = model()
    fitted.compile("sgd", "mse")
    targets = batches().map(lambda pixels, ids: (pixels, tf.one_hot(ids, 3)))
    fitted.fit(
        targets,
        epochs=epochs,
        verbose=0,
        callbacks=board.callbacks(
            train,
            heads.of(train, CLASSES),
            run_dir,
            samples=batches,
            held_out=batches,
            value_range=lambda: None,
            steps=steps,
        ),
    )


def test_nothing_is_shown_unless_it_is_asked_for(tmp_path):
    made = board.callbacks(
        Train(), heads.of(Train(), CLASSES), tmp_path, batches, batches, lambda: None, 100
    )
    assert made == []


def test_images_augmented_images_and_a_matrix_an_epoch(tmp_path):
    train = Train(board_images=4, augment=["flip", {"name": "rotation", "factor": 0.2}])
    fit(train, tmp_path)
    shown = images(tmp_path)
    assert {tag.split("/")[0] for tag in shown} == {
        "train",
        "train, augmented",
        "confusion matrix of eval",
    }
    [samples] = shown["train"].values()
    [augmented] = shown["train, augmented"].values()
    assert len(samples) == len(augmented) == 4
    assert samples[0].shape == (8, 8, 3)
    assert samples[0].max() == int(0.9 * 255)
    assert any((a != b).any() for a, b in zip(samples, augmented, strict=True))
    assert sorted(shown["confusion matrix of eval"]) == [1, 2]


def test_standardized_pixels_are_shown_as_they_were(tmp_path):
    train = Train(board_images=2)
    black, white = np.full(3, -2.0, np.float32), np.full(3, 2.0, np.float32)
    samples = board.Samples(
        train,
        tmp_path,
        lambda: batches().map(lambda pixels, ids: (pixels * 4 - 2, ids)),
        lambda: (black, white),
    )
    samples.on_train_begin()
    samples.on_train_begin()  # of the next phase
    [shown] = images(tmp_path)["train"].values()
    assert shown[0].max() == int(0.9 * 255)


@pytest.mark.parametrize("several", [False, True])
def test_the_matrix_counts_answers_by_their_truth(several):
    if several:
        counts = board.confusion(model(several=True), batches(several=True), 3)
        # The last image has no known class.
        assert counts.tolist() == [[8, 0, 0], [0, 8, 0], [0, 0, 7]]
    else:
        counts = board.confusion(model(), batches(), 3)
        assert counts.sum(axis=1).tolist() == [8, 8, 7]


@pytest.mark.parametrize("classes", [2, 12, 40])
def test_a_matrix_is_drawn_whatever_the_names(classes):
    names = ["$x_$", "čeština", *(f"class {number}" for number in range(classes - 2))]
    counts = np.eye(classes, dtype=np.int64) * 5
    picture = board.drawn(counts, names)
    assert picture.dtype == np.uint8
    assert picture.shape[-1] == 3
    # Blue on the diagonal, white beside it.
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 2


def test_some_steps_are_profiled(tmp_path):
    fit(Train(profile_steps="2-3"), tmp_path)
    [profile] = tmp_path.rglob("*.xplane.pb")
    assert profile.stat().st_size > 0
    assert profile.parts[-4:-2] == ("plugins", "profile")


def test_steps_that_are_none_are_refused():
    for steps in ("0", "0-5", "20-10"):
        with pytest.raises(ValueError, match="as in 10-20"):
            Train(profile_steps=steps)


def test_a_profile_behind_the_last_step_is_warned_of(tmp_path, event_log):
    fit(Train(profile_steps="5-8"), tmp_path, steps=4)
    assert "profile_steps=5-8 begins behind the last step: there are at most 4" in (
        event_log.read_text()
    )


def test_a_profile_ends_with_the_training(tmp_path):
    fit(Train(profile_steps="5-1000"), tmp_path)
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1


@pytest.fixture
def workdir(tmp_path):
    """A workdir with two runs: one that trained, and one whose Trainer came from the cache."""
    place = open_workdir(tmp_path / "work")
    logs = place.artifacts / "Trainer" / "model_run" / "7"
    for number, run_id in enumerate(("20260101T000000-aaaa", "20260102T000000-bbbb")):
        run = runs.RunDir(place.runs / run_id)
        run.root.mkdir(parents=True)
        (run.root / "run.json").write_text("{}")
        runs.write_json(run.artifacts, {"Trainer": {"model_run": str(logs)}} if number else {})
    runs.write_json(
        runs.RunDir(place.runs / "20260101T000000-aaaa").artifacts,
        {"Trainer": {"model_run": str(logs)}},
    )
    writer = tf.summary.create_file_writer(str(logs / "train"))
    with writer.as_default():
        tf.summary.scalar("loss", 0.75, step=1)
    writer.close()
    return place


def add_running(place, run_id: str) -> None:
    """Adds a run that trains now: only its job says whose the logs are."""
    run = place.runs / run_id
    run.mkdir()
    (run / "run.json").write_text("{}")
    logs = place.artifacts / "Trainer" / "model_run" / "9"
    writer = tf.summary.create_file_writer(str(logs / "validation"))
    with writer.as_default():
        tf.summary.scalar("loss", 0.5, step=1)
    writer.close()
    runs.write_json(logs / "job.json", {"events": str(run / "events.jsonl")})


def test_logs_are_shown_once_by_the_run_that_trained(workdir):
    assert list(tensorboard.logs(workdir)) == ["20260101T000000-aaaa"]
    add_running(workdir, "20260103T000000-cccc")
    assert set(tensorboard.logs(workdir)) == {"20260101T000000-aaaa", "20260103T000000-cccc"}


def test_the_trials_of_a_search_stand_below_their_run(workdir, tmp_path):
    run_id = "20260101T000000-aaaa"
    results = workdir.artifacts / "Tuner" / "tuner_results" / "5"
    for trial in ("001", "002"):
        writer = tf.summary.create_file_writer(str(results / "trials" / trial / "train"))
        with writer.as_default():
            tf.summary.scalar("loss", 0.5, step=1)
        writer.close()
    runs.write_json(results / "job.json", {"events": str(workdir.runs / run_id / "events.jsonl")})
    found = tensorboard.logs(workdir)
    assert set(found) == {run_id, f"{run_id}/trials"}
    links = tmp_path / "links"
    for _ in range(2):  # what is linked already stays
        tensorboard.link(found, links)
    logs = {str(path.parent.relative_to(links)) for path in links.glob("*/*/events*")} | {
        str(path.parent.relative_to(links)) for path in links.glob("*/trials/*/train/events*")
    }
    assert logs == {f"{run_id}/train"} | {f"{run_id}/trials/{n}/train" for n in ("001", "002")}


def test_a_workdir_without_logs_says_what_to_do(tmp_path):
    open_workdir(tmp_path / "work")
    with pytest.raises(UsageError, match="no logs of a training yet"):
        tensorboard.command(tmp_path / "work")


def test_a_port_that_is_taken_is_named(workdir):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SafelightError, match=f"Port {port} .* can't be had"):
            tensorboard.command(workdir.root, port)


def ask(url: str) -> object:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


def until(url: str, wanted, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if wanted(answer := ask(url)):
                return answer
        except urllib.error.URLError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"{url} did not come to answer what was waited for")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_the_curves_until_it_is_stopped(workdir, number):
    running = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("safelight")), "tensorboard"),
            *("--workdir", str(workdir.root), "--port", "0", "--json"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        preexec_fn=signals.heeded,
    )
    try:
        told = json.loads(running.stdout.readline())
        assert told["runs"] == ["20260101T000000-aaaa"]
        scalars = f"{told['url']}data/plugin/scalars/tags"
        found = until(scalars, lambda tags: "20260101T000000-aaaa/train" in tags)
        assert "loss" in found["20260101T000000-aaaa/train"]
        [point] = ask(
            f"{told['url']}data/plugin/scalars/scalars?tag=loss&run=20260101T000000-aaaa/train"
        )
        assert point[1:] == [1, 0.75]
        if number == signal.SIGTERM:
            add_running(workdir, "20260103T000000-cccc")
            until(scalars, lambda tags: "20260103T000000-cccc/validation" in tags)
    finally:
        running.send_signal(number)
        _, stderr = running.communicate(timeout=30)
    assert running.returncode == 0, stderr
    assert "TensorBoard shows 1 run at" in stderr
    with pytest.raises(urllib.error.URLError):
        ask(told["url"])
