"""Spans as benchmarks/retraining.toml plans them, cut from a folder of labelled images.

The same plan and folder give the same files: every draw derives from the plan's seed.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from pipeline.lanes import tomllib


@dataclass(frozen=True)
class Kind:
    """What a span's images are like; the plan's comments say what each key means."""

    kind: str
    light: float = 1.0
    often: Mapping[str, float] = field(default_factory=dict)
    newcomer: bool = False
    wrong: float = 0.0
    labeller: Literal["random", "shifted"] = "random"

    @property
    def look(self) -> tuple[Any, ...]:
        """What the images are, whatever their labels: spans of one look share their test images."""
        return self.light, tuple(sorted(self.often.items())), self.newcomer


@dataclass(frozen=True)
class Plan:
    """benchmarks/retraining.toml."""

    seed: int
    images: int
    golden_images: int
    test_images: int
    margin: float
    train: list[str]
    policy: list[str]
    always: list[str]
    spans: tuple[Kind, ...]


def read(path: Path) -> Plan:
    """Returns the plan of a TOML file."""
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    return Plan(spans=tuple(Kind(**one) for one in values.pop("span")), **values)


class Images:
    """A folder of images, dealt out: those for spans and those for tests never meet.

    `folder` has class folders, or train/ and test/ with class folders each. Without those two, a
    fifth of each class is kept for tests.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._plan = plan
        divided = (folder / "train").is_dir() and (folder / "test").is_dir()
        base = folder / "train" if divided else folder
        self.classes = sorted(one.name for one in base.iterdir() if one.is_dir())
        self._decks: dict[str, dict[str, list[Path]]] = {"train": {}, "test": {}}
        for name in self.classes:
            train = _shuffled(plan, base / name)
            if divided:
                test = _shuffled(plan, folder / "test" / name)
            else:
                cut = len(train) // 5
                train, test = train[cut:], train[:cut]
            self._decks["train"][name], self._decks["test"][name] = train, test
        self._dealt = dict.fromkeys(self.classes, 0)

    def write_span(self, folder: Path, number: int) -> None:
        """Writes span `number`, counted from 1, as class folders; the labels as its labeller says.

        Spans have to be written in order: each goes on where the one before has stopped dealing. A
        deck that is used up is dealt again. A folder that is complete stays as it is.
        """
        kind = self._plan.spans[number - 1]
        draw = np.random.default_rng([self._plan.seed, 1, number])
        names = self._names(kind, self._plan.images, draw)
        self._write(folder, kind, names, draw, f"{number:02d}")

    def write_golden(self, folder: Path) -> None:
        """Writes rightly labelled images of the first span's kind; before any span."""
        kind = self._plan.spans[0]
        draw = np.random.default_rng([self._plan.seed, 2])
        names = self._names(kind, self._plan.golden_images, draw)
        self._write(folder, kind, names, draw, "golden")

    def test(self, kind: Kind) -> tuple[list[bytes], list[str]]:
        """Returns encoded test images of the look of `kind`, and their right labels."""
        draw = np.random.default_rng([self._plan.seed, 3])
        names = self._names(kind, self._plan.test_images, draw)
        used = dict.fromkeys(self.classes, 0)
        images = []
        for name in names:
            deck = self._decks["test"][name]
            images.append(_encoded(deck[used[name] % len(deck)], kind.light))
            used[name] += 1
        return images, names

    def _write(
        self, folder: Path, kind: Kind, names: Sequence[str], draw: np.random.Generator, mark: str
    ) -> None:
        complete = (folder / "_SUCCESS").exists()
        for index, name in enumerate(names):
            deck = self._decks["train"][name]
            source = deck[self._dealt[name] % len(deck)]
            self._dealt[name] += 1
            label = self._label(kind, name, draw)
            if complete:
                continue
            (folder / label).mkdir(parents=True, exist_ok=True)
            (folder / label / f"{mark}-{index:04d}.png").write_bytes(_encoded(source, kind.light))
        (folder / "_SUCCESS").touch()

    def _names(self, kind: Kind, count: int, draw: np.random.Generator) -> list[str]:
        """Draws true classes, each at least once."""
        known = self._known(kind)
        weights = np.array([kind.often.get(str(self.classes.index(name)), 1.0) for name in known])
        drawn = draw.choice(len(known), count - len(known), p=weights / weights.sum())
        return [*known, *(known[index] for index in drawn)]

    def _known(self, kind: Kind) -> list[str]:
        return self.classes if kind.newcomer else self.classes[:-1]

    def _label(self, kind: Kind, name: str, draw: np.random.Generator) -> str:
        known = self._known(kind)
        if draw.random() >= kind.wrong:
            return name
        step = 1 if kind.labeller == "shifted" else int(draw.integers(1, len(known)))
        return known[(known.index(name) + step) % len(known)]


def _shuffled(plan: Plan, folder: Path) -> list[Path]:
    files = sorted(folder.iterdir())
    draw = np.random.default_rng([plan.seed, 0, *folder.name.encode()])
    return [files[index] for index in draw.permutation(len(files))]


def _encoded(path: Path, light: float) -> bytes:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L" if image.mode == "L" else "RGB"), np.float64)
    lit = Image.fromarray(np.clip(pixels * light, 0, 255).astype(np.uint8))
    out = io.BytesIO()
    lit.save(out, "PNG", compress_level=1)
    return out.getvalue()
