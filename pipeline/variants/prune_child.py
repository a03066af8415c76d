"""The process that prunes: it owns the devices, as the training process does.

python -m pipeline.variants.prune_child JOB.json
"""

from __future__ import annotations

from pipeline.trainer.train_child import serve
from pipeline.variants.job import PruneJob


def run(job: PruneJob) -> None:
    """Prunes and exports; TensorFlow is imported here, once the devices are set."""
    from pipeline.variants import prune

    prune.run(job)


if __name__ == "__main__":
    serve(PruneJob, run)
