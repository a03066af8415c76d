"""What Kubeflow's launcher hands to a step, as TFX's artifacts; and what goes back to it.

The launcher (Kubeflow Pipelines 2.17, backend/src/v2/component/launcher_v2.go) downloads the inputs
and uploads the outputs of a container. It names both by URI and expects them at the path that
belongs to it. Properties of artifacts travel in their `metadata`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from ml_metadata.proto import metadata_store_pb2
from tfx.types.artifact import Artifact
from tfx.utils import import_utils

from pipeline.errors import SafelightError

# Holds TFX's properties with their types: JSON numbers do not tell integers from floats.
TFX_PROPERTIES = "tfx_properties"
# A bucket knows no folders: an artifact that is an empty one would not arrive at all.
EMPTY = "empty_folder"

_LOCAL = {"gs://": "/gcs/", "s3://": "/s3/", "minio://": "/minio/"}


@dataclass(frozen=True)
class Slot:
    """One artifact that the launcher provides for: where it is, here and in its store.

    `key` is the step's own name for it, `name` the server's.
    """

    key: str
    name: str
    uri: str
    path: Path
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExecutorInput:
    """The launcher's `{{$}}`: inputs are there, outputs are to be written.

    `parameters` are the input values, `outputs` the artifacts' places, `output_parameters` the
    files for output parameters, and `output_file` the one for the metadata of the outputs.
    """

    parameters: Mapping[str, Any]
    inputs: Mapping[str, Slot]
    outputs: Mapping[str, Slot]
    output_parameters: Mapping[str, Path]
    output_file: Path

    @classmethod
    def parse(cls, text: str) -> ExecutorInput:
        """Reads protobuf's JSON of a kfp `ExecutorInput`.

        Raises:
          SafelightError: it isn't, or an artifact lies where no local path belongs to it.
        """
        try:
            values = json.loads(text)
            inputs, outputs = values.get("inputs", {}), values.get("outputs", {})
            return cls(
                parameters=inputs.get("parameterValues", {}),
                inputs=_slots(inputs),
                outputs=_slots(outputs),
                output_parameters={
                    key: Path(one["outputFile"])
                    for key, one in outputs.get("parameters", {}).items()
                },
                output_file=Path(outputs["outputFile"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SafelightError(
                "The step was given no executor input of Kubeflow Pipelines v2 "
                f"({type(error).__name__}: {error}). Was it started by the server's launcher?"
            ) from None


def local_path(uri: str) -> Path:
    """Returns where the launcher puts what has this URI.

    Raises:
      SafelightError: the launcher has no path for it.
    """
    for scheme, root in _LOCAL.items():
        if uri.startswith(scheme):
            return Path(root + uri.removeprefix(scheme))
    if uri.startswith("/"):
        return Path(uri)
    raise SafelightError(
        f"The artifact at {uri!r} has no local path; expected gs://, s3:// or minio://. "
        "Set kubeflow.pipeline_root to such a folder."
    )


def to_tfx(slot: Slot, type_path: str, arrived: bool) -> Artifact:
    """Returns the TFX artifact at a slot's local path.

    Args:
      slot: of an input or an output.
      type_path: module and class of the artifact's type.
      arrived: whether it is an input, which must be there.

    Raises:
      SafelightError: an input is missing.
    """
    artifact = typed(type_path, slot.path)
    if not arrived:
        slot.path.mkdir(parents=True, exist_ok=True)
        return artifact
    if slot.metadata.get(EMPTY):
        slot.path.mkdir(parents=True, exist_ok=True)
    if not slot.path.exists():
        raise SafelightError(
            f"The input {slot.key!r} is missing: nothing is at {slot.path} ({slot.uri}). It was "
            "deleted from the artifact store, perhaps, while the cache still names it: run again "
            "with --no-cache, or restore it."
        )
    if TFX_PROPERTIES in slot.metadata:
        properties_from(str(slot.metadata[TFX_PROPERTIES]), artifact)
    return artifact


def typed(type_path: str, folder: Path) -> Artifact:
    """Returns an artifact of this type (module and class) at this place, without properties."""
    artifact: Artifact = import_utils.import_class_by_path(type_path)()
    artifact.uri = str(folder)
    return artifact


def properties_of(artifact: Artifact) -> str:
    """Returns an artifact's properties with their types, as JSON on one line."""
    kept = metadata_store_pb2.Artifact()
    for name in ("properties", "custom_properties"):
        for key, value in getattr(artifact.mlmd_artifact, name).items():
            getattr(kept, name)[key].CopyFrom(value)
    told = json_format.MessageToDict(kept, preserving_proto_field_name=True)
    return json.dumps(told, sort_keys=True)


def properties_from(text: str, artifact: Artifact) -> None:
    """Gives an artifact the properties that `properties_of` told."""
    json_format.Parse(text, artifact.mlmd_artifact)


def to_metadata(artifact: Artifact) -> dict[str, Any]:
    """Returns an artifact's properties: typed, for the next step, and plain, for the pages."""
    source = artifact.mlmd_artifact
    shown: dict[str, Any] = {}
    for name in ("properties", "custom_properties"):
        for key, value in getattr(source, name).items():
            kind = value.WhichOneof("value")
            if kind in ("int_value", "double_value", "string_value"):
                shown[key] = getattr(value, kind)
    if not any(Path(artifact.uri).iterdir()):
        shown[EMPTY] = True
    return {**shown, TFX_PROPERTIES: properties_of(artifact)}


def write_output(given: ExecutorInput, metadata: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the file in which the launcher looks for the outputs' metadata.

    Args:
      given: the step's executor input.
      metadata: by output key; an output that is left out keeps what it has.
    """
    artifacts = {
        key: {
            "artifacts": [
                {"name": given.outputs[key].name, "uri": given.outputs[key].uri, "metadata": values}
            ]
        }
        for key, values in metadata.items()
        if key in given.outputs
    }
    given.output_file.parent.mkdir(parents=True, exist_ok=True)
    given.output_file.write_text(json.dumps({"artifacts": artifacts}), encoding="utf-8")


def write_parameter(given: ExecutorInput, key: str, value: str) -> None:
    """Writes an output parameter."""
    path = given.output_parameters.get(key)
    if path is None:
        raise SafelightError(
            f"The package has no place for {key!r}. It was compiled by another version than the "
            "image has: compile it again."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value, encoding="utf-8")


def _slots(values: Mapping[str, Any]) -> dict[str, Slot]:
    found = {}
    for key, listed in values.get("artifacts", {}).items():
        # The launcher itself looks at the first alone.
        for one in listed.get("artifacts", [])[:1]:
            custom = one.get("customPath")
            path = Path(custom) if custom else local_path(one["uri"])
            metadata = one.get("metadata", {})
            found[key] = Slot(key, one.get("name", key), one["uri"], path, metadata)
    return found
