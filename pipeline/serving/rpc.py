"""TF Serving's gRPC interface: Predict, GetModelMetadata and GetModelStatus of one model."""

from __future__ import annotations

from concurrent import futures
from typing import Any, Final

import grpc
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from pipeline.features import SERVING_SIGNATURE
from pipeline.serving.models import Refused, Version, Versions

# gRPC's own limit of 4 MB is less than a batch of photographs.
MAX_MESSAGE_BYTES: Final = 256 * 1024 * 1024
_THREADS: Final = 4

_CODES: Final = {
    "NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "INVALID_ARGUMENT": grpc.StatusCode.INVALID_ARGUMENT,
}


def start(versions: Versions, address: str) -> tuple[grpc.Server, int]:
    """Starts a server at host:port (0 picks a free one); returns it and its port.

    Raises:
      OSError: the port is taken.
    """
    server = grpc.server(
        futures.ThreadPoolExecutor(_THREADS),
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
        ],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Predict(versions), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Status(versions), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(str(error)) from None
    if port == 0:
        raise OSError(f"{address} is taken")
    server.start()
    return server, port


def _version(versions: Versions, spec: Any) -> Version:
    if spec.name != versions.name:
        raise Refused("NOT_FOUND", f"Servable not found for request: Latest({spec.name})")
    if spec.HasField("version_label"):  # TF Serving's own words: no label is configured
        raise Refused(
            "INVALID_ARGUMENT", f"Unrecognized servable version label: {spec.version_label}"
        )
    return versions.get(spec.version.value if spec.HasField("version") else None)


def _tensors(inputs: Any) -> dict[str, tf.Tensor]:
    tensors = {}
    for key, one in inputs.items():
        try:
            tensors[key] = tf.constant(tf.make_ndarray(one))
        except (TypeError, ValueError) as error:
            raise Refused("INVALID_ARGUMENT", f"input {key!r}: {error}") from None
    return tensors


class _Predict(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    def Predict(self, request: Any, context: Any) -> predict_pb2.PredictResponse:  # noqa: N802
        response = predict_pb2.PredictResponse()
        try:
            version = _version(self._versions, request.model_spec)
            name = request.model_spec.signature_name
            outputs = version.predict(name, _tensors(request.inputs))
        except Refused as error:
            context.abort(_CODES[error.code], str(error))
        _fill_spec(response.model_spec, self._versions.name, version, name or SERVING_SIGNATURE)
        for key, value in outputs.items():
            if not request.output_filter or key in request.output_filter:
                response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
        return response

    def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        if list(request.metadata_field) != ["signature_def"]:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "metadata_field: expected 'signature_def' alone"
            )
        try:
            version = _version(self._versions, request.model_spec)
        except Refused as error:
            context.abort(_CODES[error.code], str(error))
        _fill_spec(response.model_spec, self._versions.name, version)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, one in version.signature_defs.items():
            signatures.signature_def[key].CopyFrom(one)
        response.metadata["signature_def"].Pack(signatures)
        return response


class _Status(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = get_model_status_pb2.GetModelStatusResponse()
        spec = request.model_spec
        try:
            if spec.name != self._versions.name:
                raise Refused("NOT_FOUND", f"Could not find any versions of model {spec.name}")
            states = self._versions.states(spec.version.value if spec.HasField("version") else None)
        except Refused as error:
            context.abort(_CODES[error.code], str(error))
        for one in states:
            status = response.model_version_status.add()
            status.version = one.version
            status.state = get_model_status_pb2.ModelVersionStatus.State.Value(one.state)
            status.status.error_code = 2 if one.error else 0
            status.status.error_message = one.error
        return response


def _fill_spec(spec: model_pb2.ModelSpec, name: str, version: Version, signature: str = "") -> None:
    spec.name = name
    spec.version.value = version.number
    spec.signature_name = signature
