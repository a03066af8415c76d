"""ImageExampleGen: from a folder of images, a manifest or TFRecords to sharded `tf.Example`s.

Beam spreads pieces of work; each worker decodes its piece in light child processes and writes its
own files. Pixels never cross a Beam stage boundary: on the in-memory runner they would all be
held at once (docs/decisions/0003-ingest.md).
"""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import tensorflow as tf
from tfx import types
from tfx.components.util import examples_utils
from tfx.dsl.components.base import base_beam_component, base_beam_executor, executor_spec
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.artifacts import IngestReport
from pipeline import events, refused
from pipeline.config import Ingest
from pipeline.errors import DataRefused, known_cause
from pipeline.ingest import finish, listing, piece, plan, records, scan
from pipeline.ingest.child import Settings
from pipeline.ingest.entries import CLASS, SLICE, TARGET
from pipeline.ingest.pool import Pool, settings_for, worker_count
from pipeline.ingest.splits import Rule

STAGE = "ImageExampleGen"


class ImageExampleGenSpec(ComponentSpec):
    """The parameters and outputs of ImageExampleGen."""

    PARAMETERS = {
        "data": ExecutionParameter(type=str),
        "fingerprint": ExecutionParameter(type=str),
        "known_classes": ExecutionParameter(type=str),
        "known_columns": ExecutionParameter(type=str),
        "options": ExecutionParameter(type=str),
        "calib": ExecutionParameter(type=float, optional=True),
        "code": ExecutionParameter(type=str),
    }
    INPUTS: dict[str, ChannelParameter] = {}
    OUTPUTS = {
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "ingest_report": ChannelParameter(type=IngestReport),
    }


class Executor(base_beam_executor.BaseBeamExecutor):
    """Lists the data, has its pieces written on Beam, and finishes what they wrote."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Ingests `data`.

        Args:
          input_dict: nothing.
          output_dict: `examples` and `ingest_report`, one artifact each.
          exec_properties: `data` (a path or an address), `fingerprint` (of the data, from `scan`),
            `known_classes` (JSON list, in order), `known_columns` (JSON object of such lists),
            `options` (JSON of config.Ingest), `calib` (the share of train that goes to the split
            calib; 0: there is none) and `code` (the fingerprint of the sources, for the cache
            alone).

        Raises:
          DataRefused: the data can't be trained on, or too much of it is bad.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        artifact = artifact_utils.get_single_instance(output_dict["examples"])
        examples = Path(artifact.uri)
        report = Path(artifact_utils.get_single_instance(output_dict["ingest_report"]).uri)
        options = Ingest.model_validate_json(exec_properties["options"])
        known = tuple(json.loads(exec_properties["known_classes"] or "[]"))
        examples.mkdir(parents=True, exist_ok=True)
        report.mkdir(parents=True, exist_ok=True)
        parts = examples / ".parts"
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        try:
            rule = self._ingest(exec_properties, options, known, parts, examples, report)
        except BaseException as error:
            if isinstance(known_cause(error), DataRefused):
                refused.keep(STAGE, "ingest_report", report)
            # An artifact is whole or empty: nobody may take a half for the whole.
            for folder in (examples, report):
                for path in folder.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise
        finally:
            shutil.rmtree(parts, ignore_errors=True)
        artifact.split_names = artifact_utils.encode_split_names(list(rule.splits))
        examples_utils.set_payload_format(artifact, example_gen_pb2.FORMAT_TF_EXAMPLE)
        # The name for TFRecords that TFX's readers know; they find out themselves that the files
        # are not compressed.
        examples_utils.set_file_format(artifact, "tfrecords_gzip")

    def _ingest(
        self,
        exec_properties: dict[str, Any],
        options: Ingest,
        known: tuple[str, ...],
        parts: Path,
        examples: Path,
        report: Path,
    ) -> Rule:
        events.progress(STAGE, 0, None, "images", "listing the data")
        found = listing.read(exec_properties["data"], options, _copied)
        fingerprint, given = scan.fingerprint(found), exec_properties["fingerprint"]
        if given and not scan.same_listing(given, fingerprint):
            events.note("The data has changed since the run began; what is there now is read.")
        elif given:
            fingerprint = given  # its contents may have been verified
        rule = Rule(options.shares, found.given, exec_properties.get("calib") or 0.0)
        records.unpack_all(found, parts / "unpacked")
        cut = plan.pieces(found, rule)
        plan.save(cut, parts)
        files = len(found.entries)
        task = finish.Task(
            found=found,
            files=files,
            bytes=sum(entry.size for entry in found.entries),
            rule=rule,
            options=options,
            known_classes=known,
            known_columns=json.loads(exec_properties.get("known_columns") or "{}"),
            extra=tuple(
                [TARGET + name for name in options.targets if found.form == "manifest"]
                + [CLASS + name for name in options.class_columns if found.form == "manifest"]
                + [SLICE + name for name in options.slices if found.form == "manifest"]
            ),
            fingerprint=fingerprint,
        )
        pieces = len(cut)
        del cut
        found.entries.clear()  # the plan holds them; a million entries are a lot of memory
        _Progress.begin(files)
        settings = settings_for(found, options, parts / "unpacked")
        workers = worker_count(options.workers, files)
        with self._make_beam_pipeline() as graph:
            (
                graph
                | "Pieces" >> beam.Create(range(pieces))
                | "Spread" >> beam.Reshuffle()
                | "Write"
                >> beam.ParDo(_WritePiece(str(parts), settings, workers, options, rule, task.extra))
            )
        finish.finish(task, parts, pieces, examples, report)
        return rule


def _copied(done: int, total: int) -> None:
    """Tells how much of the data in a bucket is here."""
    events.progress(STAGE, done // 10**6, total // 10**6, "MB", "copying the data")


class _WritePiece(beam.DoFn):
    """Writes the piece with the number it is given; one pool of children serves all its pieces."""

    def __init__(
        self,
        parts: str,
        settings: Settings,
        workers: int,
        options: Ingest,
        rule: Rule,
        extra: tuple[str, ...],
    ) -> None:
        self._parts = parts
        self._settings = settings
        self._workers = workers
        self._file_seconds = options.file_seconds
        self._rule = rule
        self._extra = extra
        self._pool: Pool | None = None

    def setup(self) -> None:
        self._pool = Pool(self._workers, self._settings, self._file_seconds)

    def process(self, number: int) -> Iterator[int]:
        assert self._pool is not None
        try:
            piece.write(
                Path(self._parts),
                number,
                self._pool,
                self._rule,
                self._extra,
                tf.io.TFRecordWriter,
                _Progress.tick,
            )
        except BaseException:
            self._pool.close()  # Beam tears down only what has not failed
            raise
        yield number

    def teardown(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None


class _Progress:
    """Counts the images done in this process, and says so twice a second at most."""

    _lock = threading.Lock()
    _done = 0
    _total: int | None = None
    _said = 0.0

    @classmethod
    def begin(cls, total: int) -> None:
        cls._done, cls._total, cls._said = 0, total, 0.0

    @classmethod
    def tick(cls, more: int) -> None:
        with cls._lock:
            cls._done += more
            now = time.monotonic()
            if now - cls._said >= 0.5 or cls._done == cls._total:
                cls._said = now
                events.progress(STAGE, cls._done, cls._total, "images")


class ImageExampleGen(base_beam_component.BaseBeamComponent):
    """Reads labelled images, and writes `examples` (train, eval, test and calib where it is
    asked for) and `ingest_report`."""

    SPEC_CLASS = ImageExampleGenSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        data: str,
        fingerprint: str,
        known_classes: str,
        options: str,
        code: str,
        known_columns: str = "{}",
        calib: float = 0.0,
    ) -> None:
        """Constructs the node.

        Args:
          data: a folder, a manifest or a TFRecord file; a path, or an address in a bucket.
          fingerprint: of the data, as `pipeline.ingest.scan` gives it; part of the cache key.
          known_classes: a JSON list of the classes whose order is already fixed.
          options: the JSON of the configuration's `ingest` section.
          code: the fingerprint of the sources that ingest runs; part of the cache key.
          known_columns: a JSON object of the same for a manifest's columns that class heads learn.
          calib: share of train's images that goes to the split calib; 0 makes no such split.
        """
        super().__init__(
            spec=ImageExampleGenSpec(
                data=data,
                fingerprint=fingerprint,
                known_classes=known_classes,
                known_columns=known_columns,
                options=options,
                calib=calib,
                code=code,
                examples=types.Channel(type=standard_artifacts.Examples),
                ingest_report=types.Channel(type=IngestReport),
            )
        )
