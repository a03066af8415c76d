"""Ingest of a collection and of one five times as large: `python -m benchmarks.ingest CIFAR`.

CIFAR is a folder `train/<class>/…`, `test/<class>/…`. The larger collection holds each image and
four copies of it whose pixels are perturbed, so that none is a duplicate. Each ingest runs in a
process of its own, whose memory is sampled together with its decoding children's. What is asked
for: at most 5.5 times the time and 1.3 times the peak memory.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

TIME_BOUND = 5.5
MEMORY_BOUND = 1.3
_INTERVAL = 0.25


def enlarge(source: Path, target: Path, times: int) -> None:
    """Writes each image and `times - 1` perturbed copies, as JPEG, in the same folders."""
    rng = np.random.default_rng(17)
    for path in sorted(source.rglob("*.jpg")):
        folder = target / path.parent.relative_to(source)
        folder.mkdir(parents=True, exist_ok=True)
        os.link(path, folder / path.name)
        pixels = np.asarray(Image.open(path)).astype(np.int16)
        for copy in range(1, times):
            noisy = np.clip(pixels + rng.integers(-12, 13, pixels.shape), 0, 255)
            out = io.BytesIO()
            Image.fromarray(noisy.astype(np.uint8)).save(out, "JPEG", quality=75)
            (folder / f"{path.stem}-{copy}.jpg").write_bytes(out.getvalue())


def plain_decoding(source: Path, images: int = 3000) -> float:
    """Returns images a second that one process reads and decodes with Pillow, and no more."""
    paths = sorted(source.rglob("*.jpg"))[:images]
    began = time.perf_counter()
    for path in paths:
        np.asarray(Image.open(path))
    return len(paths) / (time.perf_counter() - began)


def measured(data: Path, out: Path) -> dict[str, Any]:
    """Ingests in a fresh process; returns its own report, its time and the family's peak memory."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.ingest", "--child", str(data), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    peaks = {"parent": 0, "family": 0}
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks), daemon=True)
    watcher.start()
    printed, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"ingest of {data} failed with code {process.returncode}")
    report: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return report | {
        "wall": time.perf_counter() - began,
        **{f"peak_{who}": peak / 2**20 for who, peak in peaks.items()},
    }


def _watch(pid: int, peaks: dict[str, int]) -> None:
    try:
        parent = psutil.Process(pid)
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            own = parent.memory_info().rss
            total = own
            for child in parent.children():
                try:
                    # Pages that a child shares with others are counted with every one of them.
                    total += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peaks["parent"] = max(peaks["parent"], own)
            peaks["family"] = max(peaks["family"], total)
            time.sleep(_INTERVAL)
    except psutil.NoSuchProcess:
        return


def ingest(data: Path, out: Path) -> dict[str, Any]:
    """Runs the component's executor; returns its time, the CPUs it kept busy and its shards."""
    import apache_beam as beam
    from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
    from tfx.types import standard_artifacts

    from components.artifacts import IngestReport
    from components.image_example_gen import Executor
    from components.image_statistics import IN_MEMORY_RUNNER
    from pipeline import events
    from pipeline.config import Ingest

    events.configure(out / "events.jsonl")
    examples, report = standard_artifacts.Examples(), IngestReport()
    examples.uri, report.uri = str(out / "examples"), str(out / "report")
    arguments = [f"--runner={IN_MEMORY_RUNNER}", "--direct_running_mode=in_memory"]
    executor = Executor(
        BaseBeamExecutor.Context(make_beam_pipeline_fn=lambda: beam.Pipeline(argv=arguments))
    )
    began, busy = time.perf_counter(), _cpu_seconds()
    executor.Do(
        {},
        {"examples": [examples], "ingest_report": [report]},
        {
            "data": str(data),
            "fingerprint": "",
            "known_classes": "[]",
            "options": Ingest().model_dump_json(),
            "code": "",
        },
    )
    seconds = time.perf_counter() - began
    summary = json.loads((out / "report" / "summary.json").read_text())
    shards = sorted((out / "examples").glob("Split-*/*"))
    return {
        "seconds": seconds,
        "cpus": (_cpu_seconds() - busy) / seconds,
        "images": summary["files"],
        "kept": sum(summary["examples"].values()),
        "shards": [round(path.stat().st_size / 1e6, 1) for path in shards],
    }


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--larger", type=Path, help="where the larger collection is, or is made")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(ingest(options.data, options.out)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.data.parent) as folder:
        larger = options.larger or Path(folder, "larger")
        if not larger.exists():
            enlarge(options.data, larger, options.times)
        rates = [plain_decoding(options.data)]
        results = []
        for number, data in enumerate((options.data, larger)):
            out = Path(folder, f"out{number}")
            out.mkdir()
            results.append(measured(data, out))
        rates.append(plain_decoding(options.data))
    return _report(results, rates)


def _report(results: list[dict[str, Any]], rates: list[float]) -> int:
    small, large = results
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    print(f"load over the last minutes: {os.getloadavg()}")
    for result in results:
        rate = result["images"] / result["seconds"]
        print(
            f"{result['images']:,} images ({result['kept']:,} kept): {result['seconds']:.1f} s, "
            f"{rate:,.0f} images/s, {result['cpus']:.2f} CPUs; peak {result['peak_parent']:,.0f} "
            f"MiB, with children {result['peak_family']:,.0f} MiB; shards {result['shards']} MB"
        )
    before, after = rates
    print(f"plain decoding, one process: {before:,.0f} images/s before, {after:,.0f} after")
    seconds = large["seconds"] / small["seconds"]
    memory = large["peak_family"] / small["peak_family"]
    print(f"time x {seconds:.2f} (at most {TIME_BOUND}), memory x {memory:.2f} ({MEMORY_BOUND})")
    return 0 if seconds <= TIME_BOUND and memory <= MEMORY_BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
