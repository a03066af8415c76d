"""TFX's Pusher, with version directories and a registry that agree whatever happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tfx import types
from tfx.components.pusher import executor as pusher_executor
from tfx.components.pusher.component import Pusher
from tfx.dsl.components.base import executor_spec
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils
from tfx.types import standard_component_specs as specs
from tfx.utils import json_utils, proto_utils

from pipeline import events, model_json, registry
from pipeline.registry import Origin
from pipeline.versions import Entry

NODE_ID = "Pusher"
# Custom property of the PushedModel: the run that published the version. It is another run's where
# this very model was already there.
PUBLISHED_BY = "published_by"


class Executor(pusher_executor.Executor):
    """Publishes a blessed model through the registry; TFX's own checks decide what is blessed."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Publishes the model, or finds it published by this very run's like.

        Args:
          input_dict: `model` and `model_blessing`.
          output_dict: `pushed_model`; it gets the properties that TFX gives it, and `published_by`.
          exec_properties: `push_destination` (its base directory is serving/<model>) and
            `custom_config` with `lineage`.

        Raises:
          NotBlessed: what is served is pinned, or no longer is what it was when the run began, or
            this model was rolled back.
          SafelightError: the model can't be copied; nothing is then changed in what is served.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        pushed = artifact_utils.get_single_instance(output_dict[specs.PUSHED_MODEL_KEY])
        Path(pushed.uri).mkdir(parents=True, exist_ok=True)
        if not self.CheckBlessing(input_dict):
            self._MarkNotPushed(pushed)
            return
        source = Path(self.GetModelPath(input_dict))
        serving = registry.open(_serving_dir(exec_properties))
        origin = self._origin(input_dict, exec_properties)
        entry = serving.published(origin, model_json.read(source)["fingerprint"])
        if entry is None:
            entry = serving.publish(source, origin, _lineage(exec_properties).get("served"))
            events.note(f"version {entry.version} is served from {serving.path(entry.version)}")
        self._mark(pushed, entry, serving.path(entry.version))

    def _origin(
        self, input_dict: dict[str, list[types.Artifact]], exec_properties: dict[str, Any]
    ) -> Origin:
        lineage = _lineage(exec_properties)
        verdict = _verdict(input_dict)
        model = artifact_utils.get_single_instance(input_dict[specs.MODEL_KEY])
        return Origin(
            by=lineage.get("by", "safelight run"),
            why=_why(verdict, lineage["champion"]),
            run_id=(self._context.pipeline_run_id if self._context else None) or "",
            data=lineage["data"],
            config=lineage["config"],
            code=lineage["code"],
            known_classes=tuple(lineage["known_classes"]),
            known_columns=lineage.get("known_columns", {}),
            champion=lineage["champion"],
            metrics=verdict.get("metrics", {}),
            model_uri=model.uri,
        )

    def _mark(self, pushed: types.Artifact, entry: Entry, path: Path) -> None:
        self._MarkPushed(pushed, pushed_destination=str(path), pushed_version=str(entry.version))
        pushed.set_string_custom_property(PUBLISHED_BY, entry.run_id)


class VersionedPusher(Pusher):
    """TFX's Pusher with our executor; make it with `versioned_pusher`."""

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)


def versioned_pusher(
    model: types.BaseChannel,
    blessing: types.BaseChannel,
    serving_dir: str,
    custom_config: dict[str, Any],
) -> VersionedPusher:
    """Returns the node `Pusher`.

    Args:
      model: the trainer's output.
      blessing: the final gate's output.
      serving_dir: serving/<model>: version directories and registry.json.
      custom_config: `lineage` (`data`, `config`, `code`, `known_classes`, `champion`: a version or
        None; `by`: who pushes, where it isn't `safelight run`), which goes into the registry, and
        `code`, the sources' fingerprint. `served` in `lineage` is what has to be served still (0:
        nothing), where the workdir is not held from the start of the run to the push.
    """
    destination = pusher_pb2.PushDestination(
        filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=serving_dir)
    )
    node = VersionedPusher(
        model=model,
        model_blessing=blessing,
        push_destination=destination,
        custom_config=custom_config,
    )
    return node.with_id(NODE_ID)


def _serving_dir(exec_properties: dict[str, Any]) -> Path:
    destination = pusher_pb2.PushDestination()
    proto_utils.json_to_proto(exec_properties[specs.PUSH_DESTINATION_KEY], destination)
    return Path(destination.filesystem.base_directory)


def _lineage(exec_properties: dict[str, Any]) -> dict[str, Any]:
    lineage: dict[str, Any] = json_utils.loads(exec_properties[specs.CUSTOM_CONFIG_KEY])["lineage"]
    return lineage


def _verdict(input_dict: dict[str, list[types.Artifact]]) -> dict[str, Any]:
    blessing = artifact_utils.get_single_instance(input_dict[specs.MODEL_BLESSING_KEY])
    path = Path(blessing.uri) / "verdict.json"
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return loaded


def _why(verdict: dict[str, Any], champion: int | None) -> str:
    if champion is None:
        return "the first model, above the floors"
    said = (verdict.get("champion") or {}).get("verdict")
    if said == "undecided":
        return f"within the margin of version {champion} by its estimate"
    return f"{said or 'no worse'} than version {champion}"
