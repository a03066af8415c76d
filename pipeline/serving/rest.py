"""TF Serving's REST interface as a FastAPI application: the same paths, requests and answers.

Written after TF Serving's documentation of its REST API
(https://www.tensorflow.org/tfx/serving/api_rest): predict in row and in column format, model
status and metadata, with and without a version. Classify, regress and labels of versions, which
Safelight's models have none of, are answered as an unknown path is.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from tensorflow.core.framework import tensor_shape_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from pipeline.serving.models import Refused, Version, Versions

# One request of a batch of large photographs; TF Serving itself has no bound.
MAX_BODY_BYTES: Final = 256 * 1024 * 1024
# Of more dimensions TensorFlow makes no tensor: it ends the process.
_MAX_DIMENSIONS: Final = 254

_HTTP: Final = {"NOT_FOUND": 404, "INVALID_ARGUMENT": 400}


def application(versions: Versions) -> FastAPI:
    """Returns the application that serves this one model."""
    app = FastAPI(title="Safelight, for development", docs_url=None, redoc_url=None)

    def model(name: str) -> Versions:
        if name != versions.name:
            raise Refused("NOT_FOUND", f"Servable not found for request: Latest({name})")
        return versions

    @app.get("/v1/models/{name}")
    @app.get("/v1/models/{name}/versions/{version:int}")
    def status(name: str, version: int | None = None) -> dict[str, Any]:
        return status_of(model(name), version)

    @app.get("/v1/models/{name}/metadata")
    @app.get("/v1/models/{name}/versions/{version:int}/metadata")
    def metadata(name: str, version: int | None = None) -> dict[str, Any]:
        return metadata_of(name, model(name).get(version))

    @app.post("/v1/models/{name}:predict")
    @app.post("/v1/models/{name}/versions/{version:int}:predict")
    async def predict(request: Request, name: str, version: int | None = None) -> dict[str, Any]:
        body = await _read(request)
        return await run_in_threadpool(answer, model(name).get(version), body)

    @app.exception_handler(Refused)
    def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"error": str(error)}, _HTTP[error.code])

    @app.exception_handler(404)
    @app.exception_handler(405)
    def unknown_path(request: Request, _: HTTPException) -> JSONResponse:
        message = f"Malformed request: {request.method} {request.url.path}"
        return JSONResponse({"error": message}, 404)

    return app


def status_of(versions: Versions, version: int | None = None) -> dict[str, Any]:
    """Returns the answer to a question for the model's status."""
    return {
        "model_version_status": [
            {
                "version": str(one.version),
                "state": one.state,
                "status": {
                    "error_code": "UNKNOWN" if one.error else "OK",
                    "error_message": one.error,
                },
            }
            for one in versions.states(version)
        ]
    }


def metadata_of(name: str, version: Version) -> dict[str, Any]:
    """Returns the answer to a question for the signatures of a version."""
    signatures = {key: _describe(one) for key, one in version.signature_defs.items()}
    return {
        "model_spec": {"name": name, "signature_name": "", "version": str(version.number)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def answer(version: Version, body: bytes) -> dict[str, Any]:
    """Returns the answer to a predict request.

    Raises:
      Refused: the body is no predict request, or the model refused its values.
    """
    request = _parsed(body)
    name = str(request.get("signature_name", ""))
    signature = version.signature(name)
    if "instances" in request:
        outputs = version.predict(name, _from_rows(request["instances"], signature))
        return {"predictions": _to_rows(outputs)}
    outputs = version.predict(name, _from_columns(request["inputs"], signature))
    columns = {key: _to_json(key, value) for key, value in outputs.items()}
    return {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Refused(
                "INVALID_ARGUMENT",
                f"The request is larger than {MAX_BODY_BYTES} bytes: send fewer images at once",
            )
    return bytes(body)


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except ValueError as error:
        raise Refused("INVALID_ARGUMENT", f"JSON Parse error: {error}") from None
    except RecursionError:
        raise Refused("INVALID_ARGUMENT", "JSON Parse error: nested too deeply") from None
    if not isinstance(request, dict):
        raise Refused("INVALID_ARGUMENT", "JSON Value: expected an object")
    if ("instances" in request) == ("inputs" in request):
        raise Refused("INVALID_ARGUMENT", "expected one of 'instances' and 'inputs'")
    return request


def _from_rows(instances: Any, signature: meta_graph_pb2.SignatureDef) -> dict[str, tf.Tensor]:
    if not isinstance(instances, list) or not instances:
        raise Refused("INVALID_ARGUMENT", "'instances' is no list, or an empty one")
    named = [isinstance(one, dict) and set(one) != {"b64"} for one in instances]
    if not any(named):
        return {_only_input(signature): _tensor(instances, _only_input(signature), signature)}
    keys = set(signature.inputs)
    if not all(named) or any(set(one) != keys for one in instances):
        raise Refused(
            "INVALID_ARGUMENT", f"each instance needs these keys: {', '.join(sorted(keys))}"
        )
    return {key: _tensor([one[key] for one in instances], key, signature) for key in keys}


def _from_columns(inputs: Any, signature: meta_graph_pb2.SignatureDef) -> dict[str, tf.Tensor]:
    if not isinstance(inputs, dict) or set(inputs) == {"b64"}:
        return {_only_input(signature): _tensor(inputs, _only_input(signature), signature)}
    unknown = set(inputs) - set(signature.inputs)
    if unknown:
        raise Refused("INVALID_ARGUMENT", f"unknown inputs: {', '.join(sorted(unknown))}")
    return {key: _tensor(value, key, signature) for key, value in inputs.items()}


def _only_input(signature: meta_graph_pb2.SignatureDef) -> str:
    if len(signature.inputs) != 1:
        raise Refused("INVALID_ARGUMENT", f"name the inputs: {', '.join(sorted(signature.inputs))}")
    return str(next(iter(signature.inputs)))


def _tensor(value: Any, key: str, signature: meta_graph_pb2.SignatureDef) -> tf.Tensor:
    dtype = tf.as_dtype(signature.inputs[key].dtype)
    if _dimensions(value) > _MAX_DIMENSIONS:
        raise Refused("INVALID_ARGUMENT", f"input {key!r}: nested too deeply")
    try:
        return tf.constant(_bytes(value) if dtype == tf.string else value, dtype)
    except (ValueError, TypeError, RecursionError, binascii.Error) as error:
        raise Refused("INVALID_ARGUMENT", f"input {key!r}: {error}") from None


def _dimensions(value: Any) -> int:
    count = 0
    while isinstance(value, list):
        count, value = count + 1, value[0] if value else None
    return count


def _bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_bytes(one) for one in value]
    if isinstance(value, dict) and set(value) == {"b64"}:
        return base64.b64decode(value["b64"], validate=True)
    if isinstance(value, str):
        return value.encode()
    raise ValueError('expected a string or {"b64": …}')


def _to_rows(outputs: Mapping[str, npt.NDArray[Any]]) -> list[Any]:
    sizes = {value.shape[0] if value.ndim else None for value in outputs.values()}
    if len(sizes) != 1 or None in sizes:
        raise Refused(
            "INVALID_ARGUMENT", "an output lacks the batch dimension: ask in the column format"
        )
    columns = {key: _to_json(key, value) for key, value in outputs.items()}
    if len(columns) == 1:
        [rows] = columns.values()
        return list(rows)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _to_json(key: str, value: npt.NDArray[Any]) -> Any:
    if value.dtype == np.float32:
        # The shortest decimals that give the same float32 back.
        return value.astype(str).astype(np.float64).tolist()
    if value.dtype != object:
        return value.tolist()
    return _texts(value.tolist(), as_base64=key.endswith("_bytes"))


def _texts(value: Any, as_base64: bool) -> Any:
    if isinstance(value, list):
        return [_texts(one, as_base64) for one in value]
    if as_base64:
        return {"b64": base64.b64encode(value).decode()}
    return value.decode("utf-8", "replace")


def _describe(signature: meta_graph_pb2.SignatureDef) -> dict[str, Any]:
    return {
        "inputs": {key: _describe_tensor(one) for key, one in signature.inputs.items()},
        "outputs": {key: _describe_tensor(one) for key, one in signature.outputs.items()},
        "method_name": signature.method_name,
        "defaults": {},
    }


def _describe_tensor(tensor: meta_graph_pb2.TensorInfo) -> dict[str, Any]:
    return {
        "dtype": types_pb2.DataType.Name(tensor.dtype),
        "tensor_shape": _describe_shape(tensor.tensor_shape),
        "name": tensor.name,
    }


def _describe_shape(shape: tensor_shape_pb2.TensorShapeProto) -> dict[str, Any]:
    sizes = [{"size": str(one.size), "name": one.name} for one in shape.dim]
    return {"dim": sizes, "unknown_rank": shape.unknown_rank}
