"""Some images of every class, as the model sees them, and as training does with augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from pipeline.features import TRAIN
from pipeline.report import pictures, seen
from pipeline.report.collect import Record
from pipeline.report.pictures import Picture
from pipeline.report.records import StoredImage
from pipeline.report.seen import Seen

_PICTURES = 96
_MOST, _FEWEST = 8, 1


@dataclass(frozen=True)
class ClassSamples:
    """Some training images of one class; the same once more, augmented, where training does."""

    name: str
    pictures: list[Picture]
    augmented: list[Picture]


@dataclass(frozen=True)
class Samples:
    """The grid; `seen` is False where no transform graph was there to look through."""

    classes: list[ClassSamples]
    left_out: int
    seen: bool
    low: float
    high: float
    policy: list[str]

    @property
    def short_names(self) -> bool:
        """Whether the names need no room of their own."""
        return max((len(it.name) for it in self.classes), default=0) <= 3


def build(record: Record) -> Samples | None:
    """Returns samples of the first classes, as many as fit, or None without examples."""
    if not record.classes or not record.places:
        return None
    each = max(_FEWEST, min(_MOST, _PICTURES // len(record.classes)))
    shown = record.classes[: _PICTURES // each]
    by_class = _first_of_each(record, shown, each)
    stored = [image for images in by_class.values() for image in images]
    if not stored:
        return None
    graph, train = record.folder("Transform", "transform_graph"), record.request.config["train"]
    encoded = [image.encoded for image in stored]
    drawn = seen.of(graph, encoded, record.workdir.cache, train) if graph else None
    found = drawn or Seen([_as_stored(image) for image in stored], 0.0, 1.0)
    plain, augmented = iter(found.pictures), iter(found.augmented)
    return Samples(
        classes=[
            ClassSamples(
                name, list(islice(plain, len(images))), list(islice(augmented, len(images)))
            )
            for name, images in by_class.items()
        ],
        left_out=len(record.classes) - len(shown),
        seen=drawn is not None,
        low=found.low,
        high=found.high,
        policy=[step["name"].replace("_", " ") for step in train.get("augment") or []],
    )


def _first_of_each(
    record: Record, classes: tuple[str, ...], count: int
) -> dict[str, list[StoredImage]]:
    """Returns the first training images of each class, as the shards (by hash) order them."""
    chosen: dict[str, list[bytes]] = {name: [] for name in classes}
    missing = set(classes)
    for name, (split, _, label) in record.places.items():
        if split == TRAIN and label in missing:
            chosen[label].append(name)
            if len(chosen[label]) == count:
                missing.discard(label)
                if not missing:
                    break
    stored = record.stored(name for names in chosen.values() for name in names)
    return {
        label: [stored[name] for name in names if name in stored] for label, names in chosen.items()
    }


def _as_stored(image: StoredImage) -> Picture:
    picture = pictures.of_file(image.encoded)
    assert picture is not None, "ingest stored it, so it can be read"
    return picture
