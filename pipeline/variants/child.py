"""The process that converts and tries variants: no devices, and it dies with its parent.

    python -m pipeline.variants.child JOB.json

TensorFlow Lite's converter may end the process it runs in: what was found of the variants before
stands in files by then, and the parent starts another process for those behind.
"""

from __future__ import annotations

from pipeline.trainer.train_child import serve
from pipeline.variants.job import MakeJob


def run(job: MakeJob) -> None:
    """Converts and tries; TensorFlow is imported here, once the environment is set."""
    from pipeline.variants import bench

    bench.run(job)


if __name__ == "__main__":
    serve(MakeJob, run)
