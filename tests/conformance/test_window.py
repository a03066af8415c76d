"""A window of spans through the compiled package: the same models as `safelight retrain` makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Config
from pipeline.ingest.scan import scan
from pipeline.kubeflow import window
from pipeline.retrain.windows import Member
from pipeline.runs import RunDir
from tests import made
from tests.conformance.server import Server
from tests.conformance.test_pipeline import SETTINGS, answers, compiled, failed, printed, run_dir
from tests.e2e.command import safelight

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

LABELS = ("blue", "green", "red")


def write_span(root: Path, number: int, images: int = 30) -> Path:
    folder = root / f"span-{number}"
    for label in LABELS:
        (folder / label).mkdir(parents=True)
        for index in range(images):
            made.picture(label, 1000 * number + index).save(folder / label / f"{index}.png")
    (folder / "_SUCCESS").touch()
    return folder


def test_the_cluster_trains_on_the_window_that_retrain_decides(tmp_path):
    volume = tmp_path / "volume"
    for number in (1, 2):
        write_span(volume / "data", number)
    options = [part for one in SETTINGS for part in ("--set", one)]
    line = ("retrain", "--spans", volume / "data", "--workdir", tmp_path / "local", "--once")
    local = safelight(*line, "--json", *options, timeout=1800)
    assert local.code == 0, local.stderr
    here = RunDir(tmp_path / "local/runs" / local.result["result"]["run_id"])
    listed = here.read_request().spans
    assert [one["judged"] for one in listed] == [False, True]

    server, package = Server(tmp_path / "server"), compiled(volume)
    given = {"data": str(volume / "data"), "spans": window.to_parameter(listed)}
    run = server.run(package, given)
    assert run.state == "SUCCEEDED", failed(run)
    result = printed(run)
    assert (result["outcome"], result["version"]) == ("pushed", 1)
    there = run_dir(volume, result)
    assert there.read_request().spans == listed
    assert there.read_request().lineage["data"] == here.read_request().lineage["data"]
    ours, theirs = answers(there), answers(here)
    assert ours.ids == theirs.ids
    assert ours.predicted == theirs.predicted
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-5)
    known = {path.name for path in (volume / "workdir/cache/spans").iterdir()}
    assert len(known) == 4

    # One more span costs the reading and the counting of that one.
    path = write_span(volume / "data", 3)
    (path / "red" / "0.png").write_bytes(b"no picture")
    options_of_ingest = Config.model_validate(there.read_request().config).ingest
    more = Member("span-3-r1", str(path), scan(str(path), options_of_ingest).fingerprint)
    earlier = [{**one, "judged": False} for one in listed]
    third = window.to_parameter([*earlier, more.to_dict()])
    again = server.run(package, {**given, "spans": third, "overrides": "train.epochs=1"})
    steps = {name: again.tasks[name].state for name in ("image-example-gen", "statistics-gen")}
    assert steps == dict.fromkeys(steps, "SUCCEEDED"), failed(again)
    after = {path.name for path in (volume / "workdir/cache/spans").iterdir()}
    assert known < after and len(after) == 6
    assert printed(again)["quarantined"] == 1
