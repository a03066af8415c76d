"""A long mutation run over ingest's decoding: `python -m tests.fuzz_images --count 20000`.

Each file is damaged in its own way, written, and read by the pool of children as ingest reads it.
Nothing may hang or go missing; and whatever is kept must be what TensorFlow decodes, to the pixel,
or training would stop at it, or learn from another picture than was checked.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import tensorflow as tf

from pipeline import decode, images
from pipeline.ingest import wire
from pipeline.ingest.child import Bad, Good, Settings
from pipeline.ingest.entries import Entry
from pipeline.ingest.pool import Pool, chunks
from tests import pictures

MAX_PIXELS = 1_000_000
BATCH = 500


def as_trained(encoded: bytes, channels: int) -> np.ndarray:
    """Returns the pixels that the transform graph's decoder gives, uint8 [height, width, c]."""
    form = images.headers.sniff(encoded[:64])
    image = tf.constant(encoded)
    if form == "bmp":
        return decode._decode_bmp(image).numpy()
    if form == "gif":
        image = decode.gif.first_frame(image, MAX_PIXELS)
    return decode._decode_file(image, 3 if form == "gif" else channels).numpy()


def disagreement(result: Good) -> str | None:
    """Returns how TensorFlow's view of a kept image differs from ingest's, or None."""
    encoded = wire.unpack(result.record)["image"][0]
    assert isinstance(encoded, bytes)
    try:
        channels = result.channels
        if encoded.startswith(b"\xff\xd8"):  # CMYK counts as colour
            channels = max(channels, 1)
        pixels = as_trained(encoded, channels)
        decode.headers.checked(tf.constant([encoded]), MAX_PIXELS)
    except tf.errors.InvalidArgumentError as error:
        return f"TensorFlow refuses it: {str(error)[:150]}"
    if pixels.shape != (result.height, result.width, result.channels):
        return f"shape {pixels.shape} for {(result.height, result.width, result.channels)}"
    if images.digest(np.ascontiguousarray(pixels)) != bytes(result.sha256):
        own = images.prepare(encoded).pixels
        return f"pixels differ by up to {np.abs(pixels.astype(int) - own).max()} levels"
    return None


def mutants(count: int, seed: int) -> list[tuple[str, bytes]]:
    """Returns (name of the file it came from, damaged bytes), the same for the same seed."""
    rng = random.Random(seed)
    bases = {**pictures.kept(), **{name: data for name, (data, _) in pictures.converted().items()}}
    names = sorted(bases)
    made = []
    for _ in range(count):
        name = rng.choice(names)
        made.append((name, pictures.mutated(bases[name], bases[rng.choice(names)], rng)))
    return made


def run(count: int, seed: int, keep: Path | None = None) -> tuple[Counter[str], list[str]]:
    """Fuzzes; returns outcomes by kind, and a line for each file that broke a promise."""
    outcomes: Counter[str] = Counter()
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(os.fsencode(folder), min_side=2, max_pixels=MAX_PIXELS, describe=True)
        with Pool(2, settings, timeout=30) as pool:
            for start in range(0, count, BATCH):
                made = mutants(min(BATCH, count - start), seed * 1_000_003 + start)
                entries = []
                for number, (name, data) in enumerate(made):
                    mutant = f"{start + number:06d}-{name}"
                    Path(folder, mutant).write_bytes(data)
                    entries.append(Entry(mutant.encode(), len(data), 0, "label"))
                results = [result for part in pool.map(chunks(entries)) for result in part]
                assert len(results) == len(entries), "a file went missing"
                for entry, result in zip(entries, results, strict=True):
                    trouble = _judge(result, outcomes)
                    path = Path(folder, os.fsdecode(entry.path))
                    if trouble is not None:
                        broken.append(f"{path.name}: {trouble}")
                        if keep is not None:
                            (keep / path.name).write_bytes(path.read_bytes())
                    path.unlink()
    return outcomes, broken


def _judge(result: Good | Bad, outcomes: Counter[str]) -> str | None:
    if isinstance(result, Bad):
        outcomes[result.reason] += 1
        if "the decoder crashed" in result.detail or "longer than" in result.detail:
            outcomes["survived a dying child"] += 1
        return None if result.reason in images.REASONS else f"unknown reason {result.reason}"
    outcomes[f"kept as {result.format}, converted: {result.converted}"] += 1
    return disagreement(result)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for the files that broke a promise")
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    outcomes, broken = run(options.count, options.seed, options.keep)
    lines = [f"{number:7d}  {name}" for name, number in sorted(outcomes.items())]
    seconds = time.monotonic() - began
    lines.append(f"{options.count} files in {seconds:.0f} s; {len(broken)} broken promises")
    sys.stdout.write("\n".join([*lines, *broken[:50]]) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
