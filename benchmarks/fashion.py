"""Fashion-MNIST with the preset fashion-cnn, through the whole of `safelight run`.

    python -m benchmarks.fashion [--data DIR] [--limit N] [--seed S] [--epochs E] [--keep DIR]

DIR has the four files train-images-idx3-ubyte.gz and so on; by default that of Debian's package
dataset-fashion-mnist. The images are written as PNGs into train/<class>/ and test/<class>/; an
eighth of train chooses, test is only judged. Prints one JSON object: accuracy on test, parameters,
seconds of the run and of fitting.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import struct
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.runs import outcome, run

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
FILES = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> np.ndarray:
    """Returns the array of an IDX file (LeCun's format for MNIST), uint8."""
    with gzip.open(path, "rb") as file:
        content = file.read()
    zeros, kind, dimensions = struct.unpack(">HBB", content[:4])
    assert (zeros, kind) == (0, 8), f"{path} is no IDX file of unsigned bytes"
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def write_folders(source: Path, folder: Path, limit: int) -> None:
    """Writes `folder/<split>/<class>/<number>.png`; at most `limit` of each split, 0 for all."""
    for split, prefix in FILES.items():
        images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
        count = min(limit, len(images)) if limit else len(images)
        for number in range(count):
            path = folder / split / CLASSES[labels[number]] / f"{number:05d}.png"
            Image.fromarray(images[number]).save(path, compress_level=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEBIAN)
    parser.add_argument("--limit", type=int, default=0, help="images of each split; 0: all")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--epochs", type=int, default=0, help="0: the preset's own")
    parser.add_argument("--keep", type=Path, help="the workdir, which is kept")
    arguments = parser.parse_args()
    if not (arguments.data / "train-images-idx3-ubyte.gz").is_file():
        parser.error(
            f"{arguments.data} has no Fashion-MNIST: apt-get install dataset-fashion-mnist"
        )
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory(prefix="safelight-fashion-") as scratch:
        folder = Path(scratch)
        write_folders(arguments.data, folder / "data", arguments.limit)
        workdir = (arguments.keep or folder / "workdir").resolve()
        settings = ["train.preset=fashion-cnn", f"train.seed={arguments.seed}"]
        if arguments.epochs:
            settings.append(f"train.epochs={arguments.epochs}")
        seconds, result = run(folder / "data", workdir, settings)
        print(json.dumps(outcome(workdir, result, seconds)))


if __name__ == "__main__":
    main()
