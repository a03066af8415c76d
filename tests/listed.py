"""Files for a listing to find, and what it found."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.config import Ingest
from pipeline.ingest import listing
from pipeline.ingest.entries import Listing, shown
from tests import pictures

PNG = pictures.kept()["grey.png"]


def put(path: Path, data: bytes = PNG) -> None:
    """Writes a file, and the folders above it."""
    file = Path(os.fsdecode(path))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def look(data: Path, **options: object) -> Listing:
    return listing.read(str(data), Ingest(**options))


def problems(found: Listing) -> dict[str, str]:
    return {shown(problem.path): problem.reason for problem in found.problems}
