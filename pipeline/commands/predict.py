"""`safelight predict`: class and probability for image files, through a pushed model.

Files go the way that a client's do: `images.prepare`, then the export's `serving_default`. A file
that can't be used is reported with its reason, and hinders no other. TensorFlow is imported only
when there is a model and something to ask it.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline import console, heads, images, model_json, registry
from pipeline.commands import predict_output
from pipeline.commands.predict_output import Prediction
from pipeline.errors import SafelightError, UsageError, bounded
from pipeline.evaluator.predictions import Answer, Export
from pipeline.ingest import walk
from pipeline.ingest.entries import Ignored
from pipeline.workdir import open_workdir

_BATCH = 64
# Of encoded images in one batch: a photograph that was turned upright has become a PNG of 20 MB.
_BATCH_BYTES = 64 * 1024 * 1024

Progress = Callable[[int, int], None]
_Prepared = tuple[Path, bytes | images.BadImage]


def command(
    paths: Sequence[Path],
    workdir: Path | None,
    model: Path | None,
    top: int,
    output: Path | None,
    as_json: bool,
) -> None:
    """Runs `safelight predict`: answers go to standard output, all else to standard error.

    Raises:
      SafelightError: no model, or not one of the files can be used.
    """
    predict_output.check_output(output)
    model_dir = find_model(workdir, model)
    facts = model_json.read(model_dir)
    classes = [str(name) for name in facts["classes"]]
    further = heads.from_facts(facts)[1:]
    found = find_images(paths)
    console.stderr.print("loading the model", style="dim")
    with console.native_silence():
        import tensorflow  # noqa: F401
    with console.stderr.status("predicting") as status:
        answered = list(
            predict(found, model_dir, lambda done, n: status.update(f"{done:,} of {n:,} images"))
        )
    if output is not None:
        predict_output.write(output, answered, classes, further)
    if as_json:
        told = predict_output.as_json(answered, classes, model_dir, top)
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        predict_output.show(answered, classes, top, whole=output is None)
    bad = [one for one in answered if one.reason is not None]
    console.stderr.print(
        f"{len(answered) - len(bad):,} images, {len(bad):,} bad files; model {model_dir}",
        markup=False,
    )
    if len(bad) == len(answered):
        raise SafelightError(
            "Not one of the files is an image that can be used.",
            [f"{one.path}: {one.reason}: {one.detail}" for one in bad[:5]],
        )


def find_model(workdir: Path | None, model: Path | None = None) -> Path:
    """Returns the directory of the export to ask.

    Args:
      workdir: its current version is taken.
      model: goes before `workdir`: a version directory, a folder of numbered versions, a Trainer's
        artifact, or a workdir, which may have been moved here from elsewhere.

    Raises:
      UsageError: nothing was named, or there is no model where it was.
    """
    if model is not None:
        return _in_directory(model.expanduser())
    if workdir is None:
        raise UsageError("Which model? Name a --workdir, or a model's directory with --model.")
    return _served(open_workdir(workdir, create=False).root)


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Returns the files, and those in the folders, in the order given; a folder's by their names.

    Links to nothing and folders that may not be read are among them: `predict` says why.

    Raises:
      UsageError: a path is not there, or there are no files at all.
    """
    found: list[Path] = []
    for path in paths:
        if _is_there(path) and path.is_dir():
            found.extend(path / os.fsdecode(below) for below in _below(path))
        elif _is_there(path):
            found.append(path)
        else:
            raise UsageError(f"There is no {path}; expected an image file or a folder of them.")
    if not found:
        raise UsageError(f"There are no images in {bounded(list(paths))}.")
    return found


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise UsageError(
            f"{path} can't be read: {error.strerror}. Expected an image file or a folder of them "
            "that this user may read."
        ) from None


def _below(folder: Path) -> list[bytes]:
    """Returns the paths in a folder, relative to it, but for devices, pipes and sockets."""
    files, problems = walk.files(folder, follow_links=True, ignored=Ignored())
    found = [file.path for file in files]
    for problem in problems:
        path = folder / os.fsdecode(problem.path)
        if not path.exists() or path.is_dir():
            found.append(problem.path)
    return sorted(found)


def predict(
    paths: Sequence[Path], model_dir: Path, progress: Progress | None = None
) -> Iterator[Prediction]:
    """Yields a prediction for each file, in their order.

    Args:
      paths: files; one that can't be used gives a Prediction with its reason.
      model_dir: an export.
      progress: called with (files done, files in all) after each batch.

    Raises:
      SafelightError: the model can't be loaded, or answers nothing sensible.
    """
    export = Export(model_dir)
    done = 0
    for batch in _batches(_prepared(paths)):
        yield from _ask(export, [path for path, _ in batch], [data for _, data in batch])
        done += len(batch)
        if progress is not None:
            progress(done, len(paths))


def _in_directory(model: Path) -> Path:
    if not model.is_dir():
        raise UsageError(f"--model {model} is no directory; expected one with a model in it.")
    for candidate in (model, model / "Format-Serving"):
        if (candidate / "saved_model.pb").is_file():
            return candidate
    if (model / "serving").is_dir():
        return _served(model)
    served = _highest(model)
    if served is None:
        raise UsageError(
            f"There is no model in --model {model}: expected saved_model.pb in it, numbered "
            "versions below it, or a workdir with serving/."
        )
    return served


def _served(workdir: Path) -> Path:
    """Returns the current version of the one model that a workdir serves."""
    serving = workdir / "serving"
    models = sorted(serving.iterdir()) if serving.is_dir() else []
    found = {path.name: version for path in models if (version := _current(path)) is not None}
    if not found:
        raise UsageError(
            f"No model has been pushed in {workdir} yet. Train one with: "
            f"safelight run DATA --workdir {workdir}"
        )
    if len(found) > 1:
        raise UsageError(
            f"{workdir} serves several models: {bounded(list(found))}. "
            f"Name one with --model {serving / next(iter(found))}"
        )
    return next(iter(found.values()))


def _current(root: Path) -> Path | None:
    if not root.is_dir():
        return None
    opened = registry.read(root)
    champion = opened.champion()
    if champion is not None and (opened.path(champion.version) / "saved_model.pb").is_file():
        return opened.path(champion.version)
    return _highest(root)


def _highest(root: Path) -> Path | None:
    versions = [
        path
        for path in root.iterdir()
        if path.name.isdecimal() and (path / "saved_model.pb").is_file()
    ]
    return max(versions, key=lambda path: int(path.name), default=None)


def _prepared(paths: Sequence[Path]) -> Iterator[_Prepared]:
    """Yields the files in their order, prepared a few at a time."""
    threads = os.cpu_count() or 1
    left = iter(paths)
    with ThreadPoolExecutor(threads) as pool:
        while few := list(itertools.islice(left, 2 * threads)):
            for path, one in zip(few, list(pool.map(_prepare, few)), strict=True):
                # What may be larger than usual is for the model to say. One at a time: a picture
                # takes up to 24 bytes a pixel while it is read.
                yield path, _prepare(path, images.MOST_PIXELS) if _too_large(one) else one


def _batches(prepared: Iterable[_Prepared]) -> Iterator[list[_Prepared]]:
    """Yields batches bounded in images and in bytes."""
    batch: list[_Prepared] = []
    held = 0
    for path, data in prepared:
        size = len(data) if isinstance(data, bytes) else 0
        if batch and (len(batch) == _BATCH or held + size > _BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append((path, data))
        held += size
    if batch:
        yield batch


def _too_large(prepared: bytes | images.BadImage) -> bool:
    return isinstance(prepared, images.BadImage) and prepared.reason == "bomb"


def _prepare(path: Path, max_pixels: int = images.MAX_PIXELS) -> bytes | images.BadImage:
    try:
        if path.stat().st_size > images.MAX_BYTES:
            limit = images.MAX_BYTES >> 20
            return images.BadImage("bomb", f"the file is larger than {limit} MiB")
        return images.prepare(path.read_bytes(), min_side=1, max_pixels=max_pixels).encoded
    except images.BadImage as error:
        return error
    except FileNotFoundError:
        return images.BadImage("missing", _missing(path))
    except OSError as error:
        return images.BadImage("unreadable", error.strerror or str(error))


def _missing(path: Path) -> str:
    return "a symbolic link to nothing" if path.is_symlink() else "the file is not there any more"


def _ask(
    export: Export, paths: Sequence[Path], prepared: Sequence[bytes | images.BadImage]
) -> list[Prediction]:
    good = [data for data in prepared if isinstance(data, bytes)]
    answers = iter(_answers(export, good))
    predictions = []
    for path, data in zip(paths, prepared, strict=True):
        told = data if isinstance(data, images.BadImage) else next(answers)
        name = _shown(path)
        if isinstance(told, images.BadImage):
            predictions.append(Prediction(name, reason=told.reason, detail=told.detail))
        else:
            [label], [probabilities] = told.said, told.probabilities
            predictions.append(Prediction(name, label, probabilities, heads=told.heads))
    return predictions


def _answers(export: Export, encoded: Sequence[bytes]) -> list[Answer | images.BadImage]:
    """Asks for a batch; where the model refuses it, for each image alone, to know which it is."""
    if not encoded:
        return []
    try:
        whole = export.serve(encoded)
    except SafelightError as error:
        if len(encoded) == 1:
            return [images.BadImage("refused", str(error))]
        return [answer for one in encoded for answer in _answers(export, [one])]
    return [whole.row(index) for index in range(len(encoded))]


def _shown(path: Path) -> str:
    """Returns a path as text; bytes that are no UTF-8 stay visible as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
