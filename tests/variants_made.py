"""A trained model with its examples and predictions, for tests of its variants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.config import Variants
from pipeline.evaluator import predictions
from pipeline.trainer import train, train_child
from pipeline.variants.job import MakeJob
from pipeline.variants.make import Work
from tests import graphs, jobs

TEST_EACH = 25


class Trained:
    """What VariantMaker is given, below one folder; the model was trained for a few epochs."""

    def __init__(self, root: Path, **settings: Any) -> None:
        """Trains; `settings` are keys of the section train."""
        self.root = root
        self.examples = root / "examples"
        shared = jobs.data(self.examples)
        counts = dict.fromkeys(graphs.CLASSES, TEST_EACH)
        graphs.write_split(self.examples, "test", counts, size=jobs.SIZE, first=200)
        self.job: train.Job = jobs.make(shared, root, "job", learning_rate=0.01, **settings)
        train_child.run(self.job)
        self.finish()

    def finish(self) -> None:
        """Writes the predictions of the model as it stands."""
        self.export = self.job.model_dir
        (self.root / "predictions").mkdir(exist_ok=True)
        served = predictions.Export(self.export)
        batches = predictions.answer_split(served, str(self.examples), "test")
        predictions.write(self.root / "predictions", batches, served)
        found = predictions.read(self.root / "predictions")
        assert found is not None
        self.answered = found

    def work(self, target: Path, **options: Any) -> Work:
        """Returns the work for variants in `target`; `options` are keys of the section."""
        return Work(
            options=Variants.model_validate(options),
            train=self.job.train,
            transform=self.job.transform,
            confidence=0.95,
            export=self.export,
            examples=self.examples,
            transform_graph=self.job.transform_graph,
            schema=self.job.schema_path,
            answered=self.answered,
            target=target,
            code="code",
        )

    def make_job(self, target: Path) -> MakeJob:
        """Returns a job for a bench in this process."""
        scratch = target / "scratch"
        scratch.mkdir(parents=True)
        wanted = scratch / "wanted.json"
        wanted.write_text(json.dumps([name.hex() for name in self.answered.ids]))
        keep = {name: getattr(self.job, name) for name in type(self.job).model_fields}
        return MakeJob(
            **{**keep, "model_dir": target / "variants"},
            export=self.export,
            names=("tflite-float32",),
            test_files=tuple(predictions.split_files(str(self.examples), "test")),
            wanted=wanted,
            scratch=scratch,
            representative_images=40,
        )
