"""A client of TF Serving, by REST or gRPC: image files in, classes and probabilities out.

    with RestClient("http://127.0.0.1:8501", "model") as client:
        [answer] = client.predict([Path("cat.webp")])
        print(answer.label, answer.score)

Every image goes the way that ingest's images go (`pipeline/images.py`), so that a rotated
photograph or a WebP file is seen as training saw its like. A call has one deadline; inside it,
what may pass (no connection, a server that is starting or overloaded) is tried again.
"""

from __future__ import annotations

import base64
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import requests

from pipeline import images
from pipeline.client.client_answers import HeadPrediction, Prediction, from_row, from_tensors
from pipeline.client.request_log import RequestLog
from pipeline.errors import SafelightError, UsageError
from pipeline.features import IMAGE, SERVING_SIGNATURE
from pipeline.images import BadImage, Prepared

__all__ = [
    "Client",
    "GrpcClient",
    "HeadPrediction",
    "NotServed",
    "Prediction",
    "RequestRefused",
    "RestClient",
    "VersionStatus",
]

_T = TypeVar("_T")

_FIRST_WAIT_SECONDS: Final = 0.1
_LONGEST_WAIT_SECONDS: Final = 2.0
# Overloaded, behind a proxy without a backend, or a backend that took too long.
_PASSING_STATUS: Final = frozenset({429, 502, 503, 504})
_MAX_MESSAGE_BYTES: Final = 256 * 1024 * 1024
# Of encoded images in one request; in REST's base64 they are a third more, and a single one may
# be larger. A photograph that was turned upright has become a PNG of 20 MB.
_BATCH_BYTES: Final = 64 * 1024 * 1024
# Of images that have been prepared and wait for their turn; others are prepared a second time.
_HELD_BYTES: Final = 512 * 1024 * 1024


class NotServed(SafelightError):
    """The server could not be reached in time."""


class RequestRefused(SafelightError):
    """The server answered that it can't do this."""


class _Passing(Exception):
    """A failure worth another try."""


@dataclass(frozen=True)
class VersionStatus:
    """One version of the model on the server; `error` is empty unless loading failed."""

    version: int
    state: str
    error: str = ""


class Client(Protocol):
    """What both clients can do."""

    def predict(self, files: Sequence[Path | bytes]) -> list[Prediction]:
        """Returns the answer for each image: a path, or a whole file's bytes."""

    def status(self) -> list[VersionStatus]:
        """Returns where each version stands, the highest first."""


class _Base(ABC):
    """Conversion, batches, the deadline and the log; the wire is the subclasses' own."""

    def __init__(
        self,
        model: str,
        version: int | None = None,
        deadline_seconds: float = 30.0,
        batch_size: int = 32,
        log: RequestLog | None = None,
        max_pixels: int = images.MAX_PIXELS,
    ) -> None:
        if deadline_seconds <= 0 or batch_size < 1:
            raise UsageError(
                f"deadline_seconds is {deadline_seconds} and batch_size {batch_size}; "
                "expected more than 0 s and at least 1 image."
            )
        self.model = model
        self.version = version
        self._deadline_seconds = deadline_seconds
        self._batch_size = batch_size
        self._log = log
        self._max_pixels = max_pixels

    def predict(self, files: Sequence[Path | bytes]) -> list[Prediction]:
        """Returns the answer for each image, in their order.

        Args:
          files: paths, or whole files' bytes, in any form that ingest reads.

        Raises:
          RequestRefused: an image can't be used (nothing is sent then), or the server refused.
          NotServed: no answer within the deadline.
        """
        answers: list[Prediction] = []
        left = self._deadline_seconds
        for batch in self._batches(files):
            began = time.monotonic()
            encoded = [image.encoded for image in batch]
            version, found = self._until(
                began + left,
                lambda seconds, e=encoded: self._predict(e, seconds),  # type: ignore[misc]
                f" about more than {len(answers):,} of {len(files):,} images" if answers else "",
            )
            seconds = time.monotonic() - began
            if self._log is not None:
                self._log.write(self.model, version, batch, found, seconds)
            answers += found
            left -= seconds
        return answers

    def _batches(self, files: Sequence[Path | bytes]) -> Iterator[list[Prepared]]:
        """Prepares all images before the first batch, so that a bad one is known before any is
        sent; then yields batches bounded in images and in bytes."""
        waiting: dict[int, Prepared] = {}
        held = 0
        for place, file in enumerate(files):
            image = _prepare(file, self._max_pixels)
            size = len(image.encoded) + image.pixels.nbytes
            if held + size <= _HELD_BYTES:
                waiting[place] = image
                held += size
        batch: list[Prepared] = []
        for place, file in enumerate(files):
            image = waiting.pop(place) if place in waiting else _prepare(file, self._max_pixels)
            size = sum(len(one.encoded) for one in batch)
            if batch and (
                len(batch) == self._batch_size or size + len(image.encoded) > _BATCH_BYTES
            ):
                yield batch
                batch = []
            batch.append(image)
        if batch:
            yield batch

    def status(self) -> list[VersionStatus]:
        """Returns where each version stands, the highest first.

        Raises:
          RequestRefused: the server doesn't know the model.
          NotServed: no answer within the deadline.
        """
        end = time.monotonic() + self._deadline_seconds
        found = self._until(end, self._status)
        return sorted(found, key=lambda one: one.version, reverse=True)

    @abstractmethod
    def _predict(
        self, encoded: list[bytes], seconds: float
    ) -> tuple[int | None, list[Prediction]]: ...

    @abstractmethod
    def _status(self, seconds: float) -> list[VersionStatus]: ...

    def _until(self, end: float, call: Callable[[float], _T], beyond: str = "") -> _T:
        """Calls with the seconds left until it works, is refused, or the time is over.

        `beyond` says what was answered before, for the message.
        """
        wait = _FIRST_WAIT_SECONDS
        tries = 0
        last = "the time was over before it"
        while (left := end - time.monotonic()) > 0:
            tries += 1
            try:
                return call(left)
            except _Passing as error:
                last = str(error)
            # Full jitter: clients that failed together don't come back together.
            pause = random.uniform(0, wait)
            if time.monotonic() + pause >= end:
                break
            time.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
        raise NotServed(
            f"{self._place()} did not answer{beyond} within {self._deadline_seconds:g} s "
            f"({tries} {'try' if tries == 1 else 'tries'}; the last one: {last}). Start the server "
            "(safelight serve --workdir DIR), check the address, or allow more time."
        )

    @abstractmethod
    def _place(self) -> str: ...

    def _not_ours(self, expected: str) -> RequestRefused:
        return RequestRefused(
            f"{self._place()} answered something else than expected: {expected}. "
            "Is this model one that Safelight pushed?"
        )


class RestClient(_Base):
    """Speaks TF Serving's REST interface; the answers don't tell which version gave them."""

    def __init__(self, url: str, model: str, **options: Any) -> None:
        """Connects at the first call.

        Args:
          url: of the server, as in http://127.0.0.1:8501.
          model: the name that it is served by.
          **options: version, deadline_seconds (that the server may take for one call), batch_size,
            log, max_pixels (width x height of what is read; larger is refused here).
        """
        super().__init__(model, **options)
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"The server's URL is {url!r}; expected http:// or https:// in front.")
        self._url = url.rstrip("/")
        self._session = requests.Session()

    def __enter__(self) -> RestClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def _path(self) -> str:
        version = "" if self.version is None else f"/versions/{self.version}"
        return f"{self._url}/v1/models/{self.model}{version}"

    def _predict(self, encoded: list[bytes], seconds: float) -> tuple[int | None, list[Prediction]]:
        rows = [{IMAGE: {"b64": base64.b64encode(one).decode()}} for one in encoded]
        body = {"signature_name": SERVING_SIGNATURE, "instances": rows}
        answer = self._ask("POST", f"{self._path()}:predict", seconds, body)
        try:
            found = [from_row(row) for row in answer["predictions"]]
        except (KeyError, TypeError, ValueError):
            raise self._not_ours(
                "predictions with label, score, classes and probabilities"
            ) from None
        if len(found) != len(encoded):
            raise self._not_ours(f"{len(encoded)} predictions, not {len(found)}")
        return self.version, found

    def _status(self, seconds: float) -> list[VersionStatus]:
        answer = self._ask("GET", self._path(), seconds)
        try:
            return [
                VersionStatus(
                    int(one["version"]),
                    one["state"],
                    one.get("status", {}).get("error_message", ""),
                )
                for one in answer["model_version_status"]
            ]
        except (KeyError, TypeError, ValueError):
            raise self._not_ours("model_version_status") from None

    def _ask(self, method: str, url: str, seconds: float, body: Any = None) -> Any:
        try:
            response = self._session.request(method, url, json=body, timeout=seconds)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _Passing(type(error).__name__) from None
        except requests.RequestException as error:
            raise RequestRefused(f"{url} can't be asked: {error}. Check the address.") from None
        if response.status_code in _PASSING_STATUS:
            raise _Passing(f"HTTP {response.status_code}")
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.ok and answer is not None:
            return answer
        reason = answer.get("error") if isinstance(answer, dict) else response.text[:200]
        raise RequestRefused(
            f"{self._place()} refused the request (HTTP {response.status_code}): {reason}. "
            "Check the model's name and version, and that the server is TF Serving's."
        )

    def _place(self) -> str:
        return f"{self.model} at {self._url}"


class GrpcClient(_Base):
    """Speaks TF Serving's gRPC interface; importing its protos imports TensorFlow (seconds)."""

    def __init__(self, target: str, model: str, **options: Any) -> None:
        """Connects at the first call, without TLS.

        Args:
          target: host:port, as in 127.0.0.1:8500.
          model: the name that it is served by.
          **options: version, deadline_seconds (that the server may take for one call), batch_size,
            log, max_pixels (width x height of what is read; larger is refused here).
        """
        super().__init__(model, **options)
        import grpc
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        limits = ("grpc.max_send_message_length", "grpc.max_receive_message_length")
        self._target = target
        self._channel = grpc.insecure_channel(
            target, options=[(limit, _MAX_MESSAGE_BYTES) for limit in limits]
        )
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        codes = grpc.StatusCode
        self._error = grpc.RpcError
        self._passing = (codes.UNAVAILABLE, codes.RESOURCE_EXHAUSTED, codes.DEADLINE_EXCEEDED)

    def __enter__(self) -> GrpcClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def _predict(self, encoded: list[bytes], seconds: float) -> tuple[int | None, list[Prediction]]:
        from tensorflow.core.framework import types_pb2
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        self._fill(request.model_spec)
        request.model_spec.signature_name = SERVING_SIGNATURE
        tensor = request.inputs[IMAGE]
        tensor.dtype = types_pb2.DT_STRING
        tensor.tensor_shape.dim.add().size = len(encoded)
        tensor.string_val.extend(encoded)
        response = self._ask(self._prediction.Predict, request, seconds)
        try:
            found = from_tensors(response.outputs)
        except (KeyError, TypeError, ValueError):
            raise self._not_ours(
                f"outputs label, score, classes and probabilities, not "
                f"{', '.join(sorted(response.outputs)) or 'none'}"
            ) from None
        return int(response.model_spec.version.value), found

    def _status(self, seconds: float) -> list[VersionStatus]:
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest()
        self._fill(request.model_spec)
        response = self._ask(self._models.GetModelStatus, request, seconds)
        states = get_model_status_pb2.ModelVersionStatus.State
        return [
            VersionStatus(int(one.version), states.Name(one.state), one.status.error_message)
            for one in response.model_version_status
        ]

    def _fill(self, spec: Any) -> None:
        spec.name = self.model
        if self.version is not None:
            spec.version.value = self.version

    def _ask(self, method: Callable[..., Any], request: Any, seconds: float) -> Any:
        try:
            return method(request, timeout=seconds)
        except self._error as error:
            if error.code() in self._passing:
                raise _Passing(f"{error.code().name}: {error.details()}") from None
            raise RequestRefused(
                f"{self._place()} refused the request ({error.code().name}): {error.details()}. "
                "Check the model's name and version, and that the server is TF Serving's."
            ) from None

    def _place(self) -> str:
        return f"{self.model} at {self._target}"


def _prepare(file: Path | bytes, max_pixels: int) -> Prepared:
    name = "the image" if isinstance(file, bytes) else str(file)
    try:
        data = file if isinstance(file, bytes) else file.read_bytes()
        return images.prepare(data, min_side=1, max_pixels=max_pixels)
    except OSError as error:
        raise RequestRefused(f"{name} can't be read: {error.strerror}. Nothing was sent.") from None
    except BadImage as error:
        raise RequestRefused(
            f"{name} can't be used ({error}). Expected a JPEG, PNG, GIF, BMP, WebP or TIFF image. "
            "Nothing was sent."
        ) from None
