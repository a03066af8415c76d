"""Tells what a run made, in whatever lane this is called in: for benchmarks/lanes.py.

    python -m benchmarks.lane_facts WORKDIR OUT.npz [MODEL]

OUT.npz gets `facts` (JSON: the split of each image, the schema, the packages' versions), and for
the first 256 test images `pixels` and `label_ids` from the transform graph, `served`
(probabilities through the signature of MODEL, by default the pushed one) and `rebuilt` (the same
from its weights).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf

from pipeline import export
from pipeline.evaluator.predictions import Export
from pipeline.runners import local
from pipeline.runs import RunDir
from pipeline.trainer import data
from pipeline.workdir import Workdir

IMAGES = 256


def main() -> None:
    """Reads the workdir's newest run and writes OUT.npz."""
    workdir, out = Workdir(Path(sys.argv[1])), Path(sys.argv[2])
    run = RunDir(max(path for path in workdir.runs.iterdir() if (path / "result.json").is_file()))
    artifacts = run.read_artifacts()
    result = run.read_result()
    assert result is not None
    model = Path(sys.argv[3] if len(sys.argv) > 3 else result.pushed_to or "")
    examples = Path(artifacts["ImageExampleGen"]["examples"])
    records = data.scan([str(examples / "Split-test" / "*")])
    serialized = list(
        tf.data.TFRecordDataset([str(path) for path in records.files])
        .take(IMAGES)
        .as_numpy_iterator()
    )
    transform = run.read_request().config["transform"]
    graph = Path(artifacts["Transform"]["transform_graph"])
    source = data.Input(graph, transform["image_size"], transform["channels"])
    pixels, label_ids = source.transform(tf.constant(serialized))
    network = export.load_weights(model)
    index = pq.read_table(Path(artifacts["ImageExampleGen"]["ingest_report"]) / "images.parquet")
    schema = Path(artifacts["ImageSchemaGen"]["schema"]) / "schema.pbtxt"
    facts = {
        "splits": dict(
            zip(
                (name.hex() for name in index["id"].to_pylist()),
                index["split"].to_pylist(),
                strict=True,
            )
        ),
        "schema": schema.read_text(encoding="utf-8"),
        "versions": local.versions(),
    }
    np.savez(
        out,
        facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
        pixels=pixels.numpy(),
        label_ids=np.asarray(label_ids),
        served=Export(model).serve_examples(serialized).probabilities,
        rebuilt=network(pixels, training=False).numpy(),
    )


if __name__ == "__main__":
    main()
