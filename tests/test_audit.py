"""The audit of labels: folds, what cleanlab finds, the table, and a whole audit of real images."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import runs
from pipeline.audit import command, source, suspects
from pipeline.config import Config, Train
from pipeline.errors import UsageError
from pipeline.ingest import corrections
from pipeline.runs import Request, RunDir
from pipeline.workdir import Workdir, open_workdir
from tests import graphs, jobs, pages, signals

SIZE = 16
EACH = 30
WRONG = {("blue", 3): "red", ("green", 7): "white", ("red", 11): "blue"}


def images(labels, keys=None):
    count = len(labels)
    return source.Images(
        ids=[f"{number}.png".encode() for number in range(count)],
        labels=list(labels),
        splits=["train"] * count,
        keys=list(keys or map(str, range(count))),
        places=list(range(count)),
    )


def test_folds_get_the_same_share_of_each_class():
    labels = ["cat"] * 50 + ["dog"] * 20
    fold, stop = source.dealt(images(labels), 5)
    for name, each in (("cat", 10), ("dog", 4)):
        counts = np.bincount(fold[[label == name for label in labels]], minlength=5)
        assert counts.tolist() == [each] * 5
    assert [stop[fold == number].any() for number in range(5)] == [True] * 5
    assert 0 < stop.mean() < 0.2


def test_equal_images_stay_together():
    keys = [str(number // 3) for number in range(60)]
    fold, stop = source.dealt(images(["cat", "dog"] * 30, keys), 4)
    for key in set(keys):
        rows = [row for row, other in enumerate(keys) if other == key]
        assert len(set(fold[rows])) == 1
        assert len(set(stop[rows])) == 1


def test_too_few_images_for_the_folds_are_refused():
    with pytest.raises(UsageError, match="needs at least 10 different images; the run has 9"):
        source.dealt(images(["cat"] * 9), 5)
    with pytest.raises(UsageError, match="two classes of at least four, the largest have 2 and 2"):
        source.dealt(images(["ant", "bee", "cat", "dog", "elk"] * 2), 5)


@pytest.mark.parametrize("folds", [2, 5, 10, 20])
@pytest.mark.parametrize(
    "sizes",
    [
        [4, 100, 100],
        [5, 100, 100],
        [100, 11, 2, 100],
        [4] * 30,
        [5] * 30,
        [10] * 30,
        [20] * 30,
    ],
)
def test_every_fold_has_a_rare_class_to_learn_from(folds, sizes):
    of = images([f"class{number:02d}" for number, size in enumerate(sizes) for _ in range(size)])
    fold, stop = source.dealt(of, folds)
    labels = np.array(of.labels)
    for number in range(folds):
        trains = fold != number
        assert set(labels[trains & ~stop]) == set(labels)
        assert (trains & stop).any()
    assert stop.sum() <= sum(-(-size // 10) for size in sizes)


def test_a_fold_is_trained_for_half_as_long():
    assert source.shortened(Train(epochs=5), None).epochs == 3
    assert source.shortened(Train(epochs=5), 7).epochs == 7
    phases = ({"epochs": 6, "unfreeze": "none"}, {"epochs": 3, "unfreeze": "20%"})
    whole = Train(backbone="MobileNetV2", phases=phases, strategy="multi_worker", board_images=4)
    short = source.shortened(whole, None)
    assert [phase["epochs"] for phase in short.phases] == [3, 2]
    assert (short.epochs, short.strategy, short.board_images) == (5, "auto", 0)
    assert [phase.get("unfreeze") for phase in short.phases] == ["none", "20%"]


def noisy(count=600, seed=3):
    """Returns given labels, true labels, and the probabilities of a good model (numbers)."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, count)
    given = truth.copy()
    wrong = rng.choice(count, count // 20, replace=False)
    given[wrong] = (truth[wrong] + rng.integers(1, 3, len(wrong))) % 3
    scores = rng.normal(0, 1, (count, 3)) + 5 * np.eye(3)[truth]
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return given, truth, chances.astype(np.float32)


def test_flipped_labels_are_found_and_the_true_ones_suggested():
    given, truth, chances = noisy()
    names = ["ant", "bee", "cow"]
    found = suspects.find([names[number] for number in given], chances, names)
    wrong = set(np.flatnonzero(given != truth).tolist())
    rows = [one.row for one in found]
    assert len(wrong & set(rows)) >= 0.85 * len(wrong)
    assert len(wrong & set(rows)) >= 0.85 * len(rows)
    right = [names[truth[one.row]] == one.suggested for one in found if one.row in wrong]
    assert np.mean(right) > 0.9
    assert [one.quality for one in found] == sorted(one.quality for one in found)
    assert all(one.suggested != one.label for one in found)
    assert all(one.suggested_probability > one.label_probability for one in found)


def test_a_class_without_images_is_no_suggestion():
    given, _, chances = noisy()
    spread = np.concatenate([chances[:, :1], np.full((600, 1), 0.9, np.float32), chances[:, 1:]], 1)
    names = ["ant", "none", "bee", "cow"]
    labels = [["ant", "bee", "cow"][number] for number in given]
    found = suspects.find(labels, spread / spread.sum(axis=1, keepdims=True), names)
    assert found
    assert {one.suggested for one in found} <= {"ant", "bee", "cow"}


def test_a_class_of_one_image_is_no_warning(recwarn):
    _, truth, chances = noisy()
    labels = [["ant", "bee", "cow"][number] for number in truth]
    labels[0] = "dot"
    spread = np.concatenate([chances, np.full((600, 1), 0.01, np.float32)], axis=1)
    suspects.find(labels, spread, ["ant", "bee", "cow", "dot"])
    assert not recwarn.list


def test_the_table_is_what_ingest_reads_and_decisions_are_carried_over(tmp_path):
    of = images(["cat", "dog", "cat"])
    of.ids[1] = b"d\xffg, 1.png"
    found = [
        suspects.Suspect(1, "dog", "cat", 0.01, 0.01, 0.97),
        suspects.Suspect(2, "cat", "dog", 0.2, 0.2, 0.8),
    ]
    path = tmp_path / "suspects.csv"
    suspects.write(path, found, of)
    header, *lines = path.read_bytes().splitlines()
    assert header == (
        b"path,label,suggested_label,quality,label_probability,suggested_probability,split,action"
    )
    assert lines[0] == b'"d\xffg, 1.png",dog,cat,0.0100,0.0100,0.9700,train,'
    assert corrections.read(path) == {}
    path.write_bytes(path.read_bytes().replace(b"train,\r\n", b"train,relabel\r\n", 1))
    decided = corrections.read(path)
    assert list(decided) == [b"d\xffg, 1.png"]
    before = suspects.decided_before(path)
    assert [row["action"] for row in before] == ["relabel"]
    suspects.write(path, found[1:], of, before)
    assert corrections.read(path) == decided
    assert len(path.read_bytes().splitlines()) == 3


def test_a_label_that_the_person_keeps_is_decided_too(tmp_path):
    path = tmp_path / "suspects.csv"
    path.write_text(
        "path,label,suggested_label,action\n"
        "1.png,a,b,relabel\n2.png,a,b, Keep \n3.png,a,b,\n4.png,a,b,remove\n"
    )
    before = suspects.decided_before(path)
    assert [row["path"] for row in before] == ["1.png", "2.png", "4.png"]


def test_a_run_that_is_not_there_is_named(tmp_path):
    place = open_workdir(tmp_path / "work")
    with pytest.raises(UsageError, match="No run in .* has come as far as Transform"):
        source.find(place, None)
    asked = request("20260101T000000-aaaa", tmp_path)
    RunDir(place.runs / asked.run_id).write_request(asked)
    with pytest.raises(UsageError, match="There is no run '20260101T000000-bbbb'.*Did you mean"):
        source.find(place, "20260101T000000-bbbb")
    with pytest.raises(UsageError, match="has no examples and transform graph"):
        source.find(place, asked.run_id)


def request(run_id, data, table=""):
    config = Config.model_validate(
        {
            "ingest": {"corrections": str(table)},
            "train": {"preset": "mnist-cnn-small", "epochs": 8, "batch_size": 10, "patience": 0},
            "transform": {"image_size": SIZE, "channels": 3},
        }
    )
    return Request(
        run_id=run_id,
        created="2026-01-01T00:00:00Z",
        data=str(data),
        config=config.model_dump(mode="json"),
        origins={},
        chosen=[],
        scan={},
        lineage={},
        inputs={},
        versions={},
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """A workdir with a run's examples, of which three have another class's label."""
    import tensorflow as tf

    root = tmp_path_factory.mktemp("audit")
    place = open_workdir(root / "work")
    examples = place.artifacts / "ImageExampleGen" / "examples" / "1"
    rows = []
    for split, numbers in (
        ("train", range(22)),
        ("eval", range(22, 25)),
        ("test", range(25, EACH)),
    ):
        folder = examples / f"Split-{split}"
        folder.mkdir(parents=True)
        with tf.io.TFRecordWriter(str(folder / "data_tfrecord-00000-of-00001")) as writer:
            for number in numbers:
                for label in graphs.CLASSES:
                    made = tf.train.Example.FromString(graphs.example(label, number, SIZE))
                    given = WRONG.get((label, number), label)
                    made.features.feature["label"].bytes_list.value[0] = given.encode()
                    writer.write(made.SerializeToString())
                    rows.append((f"{label}/{number}".encode(), split, given, f"{label}{number}"))
    report = place.artifacts / "ImageExampleGen" / "ingest_report" / "1"
    report.mkdir(parents=True)
    names = ("id", "split", "label", "sha256")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    group = pa.array([None] * len(rows), pa.string())
    pq.write_table(pa.table({**columns, "group": group}), report / "images.parquet")
    schema = place.artifacts / "ImageSchemaGen" / "schema" / "2"
    schema.mkdir(parents=True)
    graphs.write_schema(schema / "schema.pbtxt")
    run = RunDir(place.runs / "20260101T000000-aaaa")
    run.write_request(request(run.root.name, root))
    runs.write_json(
        run.artifacts,
        {
            "ImageExampleGen": {"examples": str(examples), "ingest_report": str(report)},
            "ImageSchemaGen": {"schema": str(schema)},
            "Transform": {"transform_graph": str(graphs.transform_graph(SIZE, 3))},
        },
    )
    return place


def audit(workdir, output, **more):
    command.command(workdir.root, None, 2, 6, output, as_json=True, **more)


def test_a_whole_audit_finds_the_labels_that_were_flipped(workdir, tmp_path, capfd):
    output = tmp_path / "out" / "suspects.csv"
    audit(workdir, output)
    told = json.loads(capfd.readouterr().out)
    assert (told["images"], told["folds"], told["epochs"]) == (120, 2, 6)
    assert told["agreement"] > 0.9
    listed = {row["path"]: row for _, row in corrections.rows(output)}
    for (label, number), given in WRONG.items():
        row = listed[f"{label}/{number}"]
        assert (row["label"], row["suggested_label"]) == (given, label)
    assert len(listed) == told["suspects"] <= 2 * len(WRONG)
    page = output.with_suffix(".html").read_text()
    pages.read(page)
    assert page.count("data:image/png;base64,") == len(listed)
    assert 'alt="labelled red, looks like blue"' in page
    # What only training needed is gone, and asking again trains nothing.
    [folder] = (workdir.cache / "audit").iterdir()
    assert sorted(path.name for path in folder.glob("fold-*")) == ["fold-0.npz", "fold-1.npz"]
    assert not (folder / "records").exists()
    before = (folder / "fold-0.npz").stat().st_mtime_ns
    audit(workdir, tmp_path / "again.csv")
    assert (folder / "fold-0.npz").stat().st_mtime_ns == before
    assert (tmp_path / "again.csv").read_bytes() == output.read_bytes()


@pytest.mark.slow
def test_devices_are_opened_before_tensorflow_computes(workdir):
    job = command._job(workdir, source.find(workdir, None), 2, 1)
    train = job.train.model_copy(update={"strategy": "mirrored", "devices": 2})
    folder = job.run_dir.with_name("mirrored")
    shutil.copytree(job.run_dir, folder)
    update = {"train": train, "run_dir": folder, "checkpoints": folder / "checkpoints"}
    command._train(job.model_copy(update=update))
    assert (folder / "fold-1.npz").is_file()


def test_another_order_of_the_classes_is_another_audit(workdir, tmp_path):
    """And so is another content of the transform graph: train's moments stand there."""
    found = source.find(workdir, None)
    place = open_workdir(tmp_path / "work")
    turned = graphs.write_schema(tmp_path / "schema.pbtxt", graphs.CLASSES[::-1])
    graph = shutil.copytree(found.transform_graph, tmp_path / "graph")
    again = replace(found, transform_graph=graph)

    def folder(one):
        return command._job(place, one, 2, 6).run_dir

    assert folder(again) == folder(found)
    assert folder(replace(found, schema=turned)) != folder(found)
    (graph / "moments").write_text("0.5")
    assert folder(again) != folder(found)


def fill_in(table, **actions):
    """Writes actions behind the rows of these numbers (r0, r1 and so on)."""
    lines = table.read_text().splitlines()
    for name, action in actions.items():
        lines[1 + int(name[1:])] += action
    table.write_text("\n".join(lines) + "\n")


def actions_in(table):
    return {row["path"]: row["action"] for _, row in corrections.rows(table)}


def test_what_a_person_decided_survives_the_next_audit(workdir, tmp_path, capfd):
    output = tmp_path / "suspects.csv"
    audit(workdir, output)
    first, second, *others = actions_in(output)
    undecided = output.read_bytes()
    audit(workdir, output)
    assert output.read_bytes() == undecided
    fill_in(output, r0="relabel", r1="keep")
    capfd.readouterr()
    audit(workdir, output)
    told = json.loads(capfd.readouterr().out)
    assert (told["carried_over"], told["suspects"]) == (2, len(others))
    assert actions_in(output) == {first: "relabel", second: "keep", **dict.fromkeys(others, "")}


def corrected_run(workdir, run_id, table):
    """Writes a run like that of the workdir, older, which took this table."""
    [newest] = [run for run in runs.all_runs(workdir.runs) if run.root.name.startswith("2026")]
    run = RunDir(workdir.runs / run_id)
    run.write_request(request(run_id, table.parent, table))
    runs.write_json(run.artifacts, newest.read_artifacts())
    return run_id


def test_the_tables_of_the_run_and_of_the_output_are_both_carried_over(workdir, tmp_path):
    """The run's own table knows what the run has removed; where both decide, the output counts."""
    used, output = tmp_path / "used.csv", tmp_path / "suspects.csv"
    columns = "path,suggested_label,action\n"
    used.write_text(columns + "red/gone,,remove\nred/1,blue,relabel\nred/2,blue,relabel\n")
    output.write_text(columns + "red/gone,,remove\nred/1,,keep\nred/3,,keep\n")
    run_id = corrected_run(workdir, "20250101T000000-aaaa", used)
    before = used.read_bytes()
    command.command(workdir.root, run_id, 2, 6, output)
    decided = {path: action for path, action in actions_in(output).items() if action}
    assert decided == {"red/gone": "remove", "red/1": "keep", "red/2": "relabel", "red/3": "keep"}
    assert used.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,action\nred/1,remove\nred/2,relable\n", r"can't be read.*line 3.*'relable'"),
        ("path,action\nred/1,keep\nred/99,keep\n", r"2 images, 1 of which .* have: red/99\."),
        ("name,price\nbread,3\n", r"can't be read.*no column 'path'"),
    ],
)
def test_a_table_whose_decisions_would_be_lost_is_left_alone(
    workdir, tmp_path, monkeypatch, text, message
):
    output = tmp_path / "suspects.csv"
    output.write_text(text)
    # Refused before anything is trained.
    monkeypatch.setattr(command, "_train", lambda job: pytest.fail("it trains"))
    with pytest.raises(UsageError, match=message):
        audit(workdir, output)
    assert output.read_text() == text


def test_a_slip_in_the_table_that_the_run_took_does_not_cost_the_table(workdir, tmp_path):
    output = tmp_path / "suspects.csv"
    output.write_text("path,action\nred/1,remove\nred/2,relable\n")
    run_id = corrected_run(workdir, "20250101T000000-bbbb", output)
    before = output.read_bytes()
    with pytest.raises(UsageError, match="'relable'.*Did you mean 'relabel'"):
        command.command(workdir.root, run_id, 2, 6, output)
    assert output.read_bytes() == before


@pytest.mark.slow
def test_ctrl_c_ends_the_child_and_a_second_call_goes_on(workdir, tmp_path):
    arguments = [str(workdir.root), str(tmp_path / "s.csv")]
    code = (
        "import sys; from pipeline.cli import app; "
        "app(['audit-labels', '--workdir', sys.argv[1], '--folds', '3', '--epochs', '4', "
        "'--output', sys.argv[2]])"
    )
    before = set((workdir.cache / "audit").glob("*"))
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], preexec_fn=signals.heeded)

    def folder() -> Path | None:
        return next(iter(set((workdir.cache / "audit").glob("*")) - before), None)

    def one_fold_is_done() -> bool:
        found = folder()
        return found is not None and (found / "fold-0.npz").is_file()

    jobs.wait_for(one_fold_is_done)
    [training] = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not training.is_running()
    found = folder()
    assert found is not None
    first = (found / "fold-0.npz").stat().st_mtime_ns
    command.command(workdir.root, None, 3, 4, tmp_path / "s.csv")
    assert (found / "fold-0.npz").stat().st_mtime_ns == first
    assert (found / "fold-2.npz").is_file()


def test_only_a_csv_is_written(workdir, tmp_path):
    with pytest.raises(UsageError, match=r"suspects.html is no .csv file"):
        audit(workdir, tmp_path / "suspects.html")
