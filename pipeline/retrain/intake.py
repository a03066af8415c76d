"""Reads new spans before it is decided about them: a child process with TFX and TensorFlow.

    python -m pipeline.retrain.intake WORKDIR FOLDER

FOLDER/run.json is a request whose window holds the spans to look at; its inputs also say where the
champion's run has its artifacts. Each span's own nodes are run, the very ones that a training's
graph has: what is read here is a cache hit there. What was found goes to FOLDER/evidence.json,
`{span's name: {"images", "label_drift", "fact_drift", "new_classes", "asked", "correct", "moved",
"chance", "labels"} or {"refused", "reasons"} or {"failed"}}`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import events, runs
from pipeline.errors import DataRefused, SafelightError, known_cause
from pipeline.features import SPLITS, TEST, TRAIN
from pipeline.runs import Request, RunDir
from pipeline.workdir import Workdir

if TYPE_CHECKING:
    from tensorflow_metadata.proto.v0 import statistics_pb2

EVIDENCE = "evidence.json"
_STATISTICS = "FeatureStats.pb"
# Distances are asked of TFDV, which measures only what has a threshold.
_ANY = 1.0


def main() -> None:
    """Looks at every span of the request, whatever becomes of the others."""
    workdir, folder = Workdir(Path(sys.argv[1])), RunDir(Path(sys.argv[2]))
    del sys.argv[1:]  # TFX's executors hand the program's own arguments to Beam
    events.configure(folder.events)
    logging.basicConfig(level=logging.INFO)
    os.environ["TF_USE_LEGACY_KERAS"] = "0"
    from pipeline.config import Config
    from pipeline.runners.nodes import NodeRunner

    request = folder.read_request()
    runner = NodeRunner(Config.model_validate(request.config), request, workdir)
    reference = _reference(request)
    found: dict[str, Any] = {}
    for span in request.spans:
        if span["golden"]:
            continue
        try:
            found[span["name"]] = _look(runner, span, request, reference, workdir.cache)
        except Exception as error:  # noqa: BLE001 - the other spans may be well
            traceback.print_exc()
            found[span["name"]] = _failed(error)
        runs.write_json(folder.root / EVIDENCE, found)


def _failed(error: Exception) -> dict[str, Any]:
    known = known_cause(error)
    if isinstance(known, DataRefused):
        return {"refused": str(known), "reasons": known.reasons}
    return {"failed": str(known or f"{type(error).__name__}: {error}")}


def _look(
    runner: Any,
    span: dict[str, Any],
    request: Request,
    reference: statistics_pb2.DatasetFeatureStatisticsList | None,
    cache: Path,
) -> dict[str, Any]:
    made = runner.run(f"ImageExampleGen.{span['name']}").uris
    summary = json.loads((Path(made["ingest_report"]) / "summary.json").read_text("utf-8"))
    if summary["fingerprint"] != span["fingerprint"]:
        raise SafelightError(f"{span['path']} changed while it was read.")
    counted = runner.run(f"StatisticsGen.{span['name']}").uris["statistics"]
    _check_anomalies(Path(counted), summary, request)
    known = request.inputs["known_classes"]
    evidence: dict[str, Any] = {
        "images": sum(summary["examples"].values()),
        "new_classes": [name for name in summary["classes"] if known and name not in known],
    }
    if reference is not None:
        evidence.update(distances(_read_statistics(Path(counted), TRAIN), reference))
    if request.inputs["champion_uri"]:
        champion = Path(request.inputs["champion_uri"])
        evidence.update(asked(champion, made["examples"]))
        if looks_closely(request.config["retrain"]):
            from pipeline.retrain import embedding

            artifacts = request.inputs["champion_artifacts"]
            evidence.update(embedding.compare(champion, artifacts, made["examples"], cache))
    return evidence


def looks_closely(retrain: Mapping[str, Any]) -> bool:
    """Says whether the section asks for what takes the champion's own network."""
    return bool(retrain["embedding_drift"] or retrain["label_noise"])


def _check_anomalies(statistics: Path, summary: dict[str, Any], request: Request) -> None:
    """Refuses a span whose facts can't be right, before any other pays for it."""
    import tensorflow_data_validation as tfdv

    from pipeline.config import Validation
    from pipeline.validation import checks
    from schemas import image_schema

    schema = image_schema.parse(image_schema.completed(summary["classes"]))
    by_split = {split: _read_statistics(statistics, split) for split in (TRAIN, TEST)}
    evidence = checks.Evidence(
        statistics=by_split,
        anomalies={split: tfdv.validate_statistics(one, schema) for split, one in by_split.items()},
        counts=summary["per_class"],
    )
    options = Validation.model_validate(request.config["validation"])
    # How many images of a class there are is a matter of the whole window.
    of_all = ("absent_classes", "few_images", "imbalance", "unseen_labels", "split_mix")
    only = dict.fromkeys(of_all, "off")
    checks.refuse(checks.run(options.model_copy(update=only), evidence))


def _reference(request: Request) -> statistics_pb2.DatasetFeatureStatisticsList | None:
    """Returns the statistics of what the champion was trained on; None where they are gone."""
    made = request.inputs.get("champion_artifacts", {})
    uri = made.get("StatisticsGen", {}).get("statistics")
    with contextlib.suppress(OSError):
        return _read_statistics(Path(uri), TRAIN) if uri else None
    return None


def _read_statistics(folder: Path, split: str) -> statistics_pb2.DatasetFeatureStatisticsList:
    from tensorflow_metadata.proto.v0 import statistics_pb2

    read = statistics_pb2.DatasetFeatureStatisticsList()
    read.ParseFromString((folder / f"Split-{split}" / _STATISTICS).read_bytes())
    return read


def distances(
    span: statistics_pb2.DatasetFeatureStatisticsList,
    reference: statistics_pb2.DatasetFeatureStatisticsList,
) -> dict[str, Any]:
    """Returns `label_drift` (L-infinity) and `fact_drift` (Jensen-Shannon by fact), from TFDV."""
    import tensorflow_data_validation as tfdv

    from pipeline.features import FLOAT_FACTS, INT_FACTS, LABEL
    from schemas import image_schema

    schema = image_schema.parse(image_schema.curated())
    for feature in schema.feature:
        if feature.name == LABEL:
            feature.ClearField("domain")
            feature.drift_comparator.infinity_norm.threshold = _ANY
        elif feature.name in (*FLOAT_FACTS, *INT_FACTS):
            feature.drift_comparator.jensen_shannon_divergence.threshold = _ANY
    anomalies = tfdv.validate_statistics(span, schema, previous_statistics=reference)
    measured = {
        info.path.step[0]: info.drift_measurements[0].value
        for info in anomalies.drift_skew_info
        if info.drift_measurements
    }
    label = measured.pop(LABEL, None)
    return {"label_drift": label, "fact_drift": measured}


def asked(champion: Path, examples: str) -> dict[str, int]:
    """Returns how many of a span's images the champion was `asked`, and how many it got `correct`.

    All of them are asked about: the champion was trained on none.
    """
    from pipeline.evaluator import predictions

    export = predictions.Export(champion)
    right = total = 0
    for split in SPLITS:
        if not predictions.split_files(examples, split):
            continue
        for batch in predictions.answer_split(export, examples, split):
            pairs = zip(
                batch.column("label").to_pylist(),
                batch.column("predicted").to_pylist(),
                strict=True,
            )
            right += sum(label == predicted for label, predicted in pairs)
            total += batch.num_rows
    return {"asked": total, "correct": right}


if __name__ == "__main__":
    main()
