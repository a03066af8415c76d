"""The compiled package run step by step inside the built image, and the same run by the command."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline import registry
from pipeline.evaluator import predictions
from pipeline.runs import RunDir
from tests import made
from tests.conformance import image as images
from tests.conformance.image import Image, ImageLauncher
from tests.conformance.server import Server
from tests.conformance.test_pipeline import COUNTS, SETTINGS, compiled, failed, printed

pytestmark = [pytest.mark.slow, pytest.mark.image]

VOLUME = Path("/safelight")
_SECONDS = 1800


@pytest.fixture(scope="module")
def image():
    mounted = images.mount()
    yield mounted
    mounted.release()


@pytest.fixture()
def inside(image, tmp_path):
    """Runs a command line in the image, on an empty volume."""
    volume = tmp_path / "volume"
    volume.mkdir()
    images.give(volume, image)

    def run(*line: str):
        return image.enter(volume, tmp_path / "pod", list(line), {}, 300)

    return run


def test_it_runs_as_nobody_and_can_write_to_no_more_than_tmp(inside, image):
    script = (
        "import os, pathlib, sys\n"
        "print(os.getuid(), os.getgid(), os.getgroups())\n"
        "pathlib.Path('/tmp/here').write_text('x')\n"
        "for place in ('/', '/opt/safelight', '/usr/lib', '/etc'):\n"
        "    try:\n"
        "        pathlib.Path(place, 'there').write_text('x')\n"
        "    except OSError as error:\n"
        "        continue\n"
        "    sys.exit(place + ' can be written to')\n"
    )
    ended = inside("python", "-c", script)
    assert ended.exit_code == 0, ended.log
    assert ended.log.startswith(f"{image.uid} {image.uid} []")
    assert image.uid > 0


def test_it_holds_no_compiler_and_no_cache(image):
    left = [
        str(place)
        for folder in ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "opt/safelight/bin")
        for tool in ("gcc", "g++", "cc", "make", "git", "uv", "pip")
        for place in [image.root / folder / tool]
        if place.exists()
    ]
    assert not left
    for folder in ("root/.cache", "var/cache/apt/archives", "var/lib/apt/lists", "build", "wheels"):
        place = image.root / folder
        assert not place.exists() or not any(one.is_file() for one in place.rglob("*")), folder


def test_the_command_is_there(inside, image):
    ended = inside(*image.entrypoint, "--help")
    assert ended.exit_code == 0, ended.log
    assert "validated, blessed and served" in ended.log


@pytest.mark.timeout(7200)
def test_the_pipeline_inside_the_image_is_the_run_inside_the_image(image, tmp_path):
    volume = tmp_path / "volume"
    made.class_folders(volume / "data", COUNTS)
    images.give(volume, image)
    server = Server(tmp_path / "server", partial(ImageLauncher, image, volume))
    run = server.run(compiled(VOLUME), {"data": "/safelight/data"})
    assert run.state == "SUCCEEDED", failed(run)
    result = printed(run)
    assert (result["outcome"], result["version"]) == ("pushed", 1)
    assert registry.read(volume / "workdir/serving/model").current == 1
    there = answers(volume, volume / "workdir/runs" / result["run_id"])
    here = answers(volume, by_command(image, volume, tmp_path / "pod"))
    assert there.ids == here.ids
    assert there.predicted == here.predicted
    np.testing.assert_allclose(there.probabilities, here.probabilities, atol=1e-5)


def by_command(image: Image, volume: Path, pod: Path) -> Path:
    """Does the same by `safelight run` in the image; returns the run's folder."""
    options = [part for one in SETTINGS for part in ("--set", one)]
    line = ["safelight", "run", "/safelight/data", "--workdir", "/safelight/local", *options]
    ended = image.enter(volume, pod, [*line, "--json"], {}, _SECONDS)
    assert ended.exit_code == 0, ended.log
    [last] = [one for one in ended.log.splitlines() if one.startswith('{"run_id"')]
    return volume / "local/runs" / json.loads(last)["run_id"]


def answers(volume: Path, run: Path) -> predictions.Predictions:
    recorded = RunDir(run).read_artifacts()["Predictor"]["predictions"]
    read = predictions.read(volume / Path(recorded).relative_to(VOLUME))
    assert read is not None
    return read
