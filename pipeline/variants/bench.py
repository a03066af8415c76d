"""Makes variants and tries them: each one's answers, size and latency, beside the SavedModel's.

    bench.run(job)

What is found goes into files (`MakeJob.found`, `MakeJob.answers`), variant by variant.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import tarfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from pipeline import events, features, heads, model_json
from pipeline.blessing import latency
from pipeline.config.variants import VariantName
from pipeline.evaluator.predictions import Export
from pipeline.records import Input, sample_images, scan
from pipeline.variants import convert, lite, pixels, timing
from pipeline.variants.job import LITE_FILE, STAGE, MakeJob
from pipeline.variants.lite import Lite
from pipeline.variants.pixels import Bytes

FORMAT: Final = 1
_SAMPLES: Final = 8  # images that latencies are measured with
_BATCH: Final = 256


def run(job: MakeJob) -> None:
    """Makes and tries the job's variants; an error of one is written down, and the others go on."""
    # Latencies are compared on one thread. A network's operations run one behind the other anyway.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    bench = Bench(job)
    for name in job.names:
        events.progress(STAGE, job.names.index(name), len(job.names), "variants", name)
        job.begun(name).touch()
        try:
            found = bench.pruned() if name == "pruned" else bench.converted(name)
        except Exception as error:  # noqa: BLE001 - a network that can't be converted is a finding
            traceback.print_exc()
            found = {"error": convert.reason(name, error)}
        job.write_found(name, found)


class Bench:
    """What the variants of one model have in common; each part is made when it is first needed."""

    def __init__(self, job: MakeJob) -> None:
        self.job = job
        self.facts = model_json.read(job.export)
        self.heads = heads.from_facts(self.facts)
        self.wanted = [bytes.fromhex(one) for one in json.loads(job.wanted.read_text())]

    @functools.cached_property
    def source(self) -> Input:
        """The transform graph."""
        facts = self.facts
        return Input(self.job.transform_graph, facts["image_size"], facts["channels"], self.heads)

    @functools.cached_property
    def pixels(self) -> Bytes:
        """The test images, uint8 [images, side, side, channels]."""
        place = self.job.scratch / "pixels.npy"
        return pixels.of_ids(self.source, self.job.test_files, self.wanted, place)

    @functools.cached_property
    def representative(self) -> Bytes:
        """Images of train, uint8 [images, side, side, channels]."""
        records = scan(self.job.train_files)
        count = self.job.representative_images
        return pixels.representative(self.source, records.names, records.examples, count)

    @functools.cache  # noqa: B019 - one bench lives as long as its process
    def network(self, kind: str) -> convert.Network:
        """The network with pixels of this type as its input."""
        model = convert.load(self.job.export, self.facts.get("temperature"))
        scaling = pixels.scaling(self.source.value_range())
        directory = self.job.scratch / f"network-{kind}"
        return convert.network(model, self.heads, scaling, kind, directory)

    @functools.cached_property
    def _saved(self) -> Any:
        """The network with bytes as its input, loaded as a SavedModel."""
        return tf.saved_model.load(str(self.network("uint8").directory))

    def converted(self, name: VariantName) -> dict[str, Any]:
        """Converts to TensorFlow Lite, tries the file, and returns what was found."""
        whole = name == "tflite-int8"
        exported = self.network("float32" if whole else "uint8")
        content = convert.converted(name, exported, self.representative if whole else None)
        path = self.job.model_dir / name / LITE_FILE
        labels = list(self.facts["classes"])
        # Written twice: the interpreter of the file says what its inputs and outputs are.
        convert.write(path, content, labels, {})
        model = Lite(path)
        convert.write(path, content, labels, self._told(name, model))
        label = convert.output_name(self.heads[0])
        self._keep(name, lite.probabilities(path, self.pixels, label))
        mine, theirs = timing.compared(
            lambda number: model.answer(self._one(number)), self._network_call()
        )
        size = path.stat().st_size
        return {
            "file": f"{name}/{LITE_FILE}",
            "bytes": size,
            "size_ratio": size / latency.size(self.job.export),
            "p50_ms": mine,
            "ratio": mine / theirs,
            "step": model.step(label),
        }

    def pruned(self) -> dict[str, Any]:
        """Tries the pruned SavedModel, and returns what was found."""
        directory = self.job.model_dir / "pruned"
        self._keep("pruned", self._asked(Export(directory)))
        mine, theirs = timing.compared(
            self._served_call(directory), self._served_call(self.job.export)
        )
        size = compressed_bytes(directory)
        return {
            "file": "pruned",
            "bytes": size,
            "compressed": True,
            "size_ratio": size / compressed_bytes(self.job.export),
            "p50_ms": mine,
            "ratio": mine / theirs,
        }

    def _one(self, number: int) -> Bytes:
        row = number % len(self.pixels)
        return np.asarray(self.pixels[row : row + 1])

    def _keep(self, name: str, answers: npt.NDArray[np.float32]) -> None:
        np.save(self.job.answers(name), answers)

    def _told(self, name: str, model: Lite) -> dict[str, Any]:
        """Returns the model.json of a TensorFlow Lite file."""
        kept = ("classes", "heads", "image_size", "channels", "resize", "preset", "fingerprint")
        return {
            "format": FORMAT,
            "variant": name,
            **{key: self.facts[key] for key in kept if key in self.facts},
            "temperature": self.facts.get("temperature"),
            "threshold": self.facts.get("threshold"),
            "versions": self.facts.get("versions", {}),
            **model.described(),
        }

    def _network_call(self) -> Callable[[int], object]:
        """Returns how the same network answers as a SavedModel, from the same pixels."""
        answer = self._saved.signatures[features.SERVING_SIGNATURE]
        output = convert.output_name(self.heads[0])

        def call(number: int) -> object:
            given = {features.PIXELS: tf.constant(self._one(number))}
            return answer(**given)[output].numpy()

        return call

    def _served_call(self, directory: Path) -> Callable[[int], object]:
        """Returns how an export answers one encoded image."""
        served = Export(directory)
        images = itertools.cycle(sample_images(scan(self.job.test_files), _SAMPLES))
        return lambda number: served.serve([next(images)])

    def _asked(self, served: Export) -> npt.NDArray[np.float32]:
        """Returns what an export answers about the wanted images, float32 [images, classes]."""
        rows = pixels.rows_of(self.wanted)
        answers = np.full((len(self.wanted), len(served.classes)), np.nan, np.float32)
        spec = {features.ID: tf.io.FixedLenFeature([], tf.string)}
        for batch in tf.data.TFRecordDataset(list(self.job.test_files)).batch(_BATCH):
            ids = tf.io.parse_example(batch, spec)[features.ID].numpy()
            among = [(index, rows[name].pop()) for index, name in enumerate(ids) if rows.get(name)]
            if among:
                asked, places = zip(*among, strict=True)
                said = served.serve_examples(tf.gather(batch, asked)).probabilities
                answers[list(places)] = said
        return answers


def compressed_bytes(directory: Path) -> int:
    """Returns the size of a SavedModel's graph and variables as a gzipped tar file."""
    counted = _Counted()
    with tarfile.open(fileobj=counted, mode="w|gz") as archive:
        for path in _saved_files(directory):
            archive.add(path, str(path.relative_to(directory)))
    return counted.bytes


class _Counted(io.RawIOBase):
    """A file that keeps nothing but its size."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.bytes += len(content)
        return len(content)


def _saved_files(directory: Path) -> list[Path]:
    variables = sorted(path for path in (directory / "variables").glob("*") if path.is_file())
    return [directory / "saved_model.pb", *variables]
