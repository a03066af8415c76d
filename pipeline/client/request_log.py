"""Requests and their answers as JSON lines: what monitoring reads, as TF Serving logs none itself.

    {"t": seconds since 1970, "model", "version": n or null, "sha256": of the bytes sent,
     "bytes", "format", "height", "width", "channels", "converted": what or null,
     "facts": {"aspect_ratio", "brightness", "contrast", "sharpness", "channel_mean",
     "channel_std"}, "label", "score", "probabilities": {class: p}, "milliseconds": of its batch,
     "image": base64 of the bytes sent, where images are kept}

One line an image. The facts are those that ingest records about training images, so that what is
asked can be compared with what was learnt.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import images
from pipeline.errors import SafelightError, UsageError
from pipeline.images import Prepared

if TYPE_CHECKING:
    from pipeline.client import Prediction


@dataclass(frozen=True)
class RequestLog:
    """A file that requests are appended to.

    Attributes:
      path: the file; its folder must be there.
      share: of the images to log, 0 to 1, picked at random.
      keep_images: whether the image itself is logged too, for labelling it later.
    """

    path: Path
    share: float = 1.0
    keep_images: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(f"The share of requests to log is {self.share}; expected 0 to 1.")

    def write(
        self,
        model: str,
        version: int | None,
        sent: list[Prepared],
        answers: list[Prediction],
        seconds: float,
    ) -> None:
        """Appends a line for each image of one batch.

        Raises:
          SafelightError: the file can't be written.
        """
        lines = [
            json.dumps(self._line(model, version, image, answer, seconds), ensure_ascii=False)
            for image, answer in zip(sent, answers, strict=True)
            if random.random() < self.share
        ]
        if not lines:
            return
        content = ("\n".join(lines) + "\n").encode("utf-8")
        try:
            self._append(content)
        except OSError as error:
            raise SafelightError(
                f"The request log {self.path} can't be written ({error.strerror}); the request "
                "itself was answered. Name a file in a folder that is there, may be written and "
                "has room."
            ) from None

    def _append(self, content: bytes) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            # One write of whole lines: other clients append to the same file.
            os.write(descriptor, content)
        finally:
            os.close(descriptor)

    def _line(
        self, model: str, version: int | None, image: Prepared, answer: Prediction, seconds: float
    ) -> dict[str, Any]:
        line: dict[str, Any] = {
            "t": round(time.time(), 3),
            "model": model,
            "version": version,
            "sha256": hashlib.sha256(image.encoded).hexdigest(),
            "bytes": len(image.encoded),
            "format": image.format,
            "height": image.height,
            "width": image.width,
            "channels": image.channels,
            "converted": image.converted,
            "facts": asdict(images.facts(image.pixels)),
            "label": answer.label,
            "score": answer.score,
            "probabilities": answer.probabilities,
            "milliseconds": round(1000 * seconds, 2),
        }
        if answer.heads:
            line["heads"] = answer.as_json()["heads"]
        if self.keep_images:
            line["image"] = base64.b64encode(image.encoded).decode()
        return line
