"""The sections of data: ingest, validation and transform."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator

from pipeline.config.base import Mode, Section


class Ingest(Section):
    """How images are found, decoded, checked and split."""

    split: str = Field(
        "70/10/20",
        description="Per cent of the images for train/eval/test, by hash of the pixels. Split "
        "folders given in the data win; with one held-out folder, eval is carved from train.",
    )
    error_budget: float = Field(
        0.05, ge=0, le=1, description="Share of bad files above which the run stops (exit 4)."
    )
    max_images: int = Field(
        0, ge=0, description="Take at most this many images, evenly by hash; 0 takes all."
    )
    min_side: int = Field(4, ge=1, description="Pixels; a shorter side is `too_small`.")
    max_pixels: int = Field(
        50_000_000,
        ge=1,
        le=178_000_000,
        description="Width x height above which a file is refused unread; no more than "
        "transform.max_pixels.",
    )
    workers: int = Field(0, ge=0, description="Decoding processes; 0 takes all cores.")
    file_seconds: float = Field(
        60.0, gt=0, description="Seconds that decoding one file may take before it is given up."
    )
    form: Literal["auto", "folders", "splits", "manifest", "tfrecords"] = Field(
        "auto", description="How the data is laid out; by default found out."
    )
    label_from: Literal["top", "path"] = Field(
        "top",
        description="In nested class folders: the class is the `top` folder, or the whole `path` "
        "of folders (animals/cat).",
    )
    follow_links: bool = Field(
        False, description="Whether symbolic links and manifest paths may leave the data."
    )
    near_duplicates: Literal["report", "drop", "off"] = Field(
        "report",
        description="Images that look the same in two splits: shown as pairs, or dropped from "
        "the training side too.",
    )
    manifest: str = Field(
        "", description="The manifest's name below DATA; by default manifest.csv or the like."
    )
    path_column: str = Field("", description="The manifest's column of paths; by default found.")
    label_column: str = Field("", description="The manifest's column of labels.")
    split_column: str = Field("", description="The manifest's column of splits.")
    group_column: str = Field(
        "", description="The manifest's column of groups, which no split tears apart."
    )
    targets: tuple[str, ...] = Field(
        (),
        description="Numeric columns of the manifest to carry; those of train.heads are without "
        "being named.",
    )
    class_columns: tuple[str, ...] = Field(
        (),
        description="Columns of the manifest with classes beside the label, to carry; those of "
        "train.heads are without being named.",
    )
    slices: tuple[str, ...] = Field(
        (), description="Columns of the manifest to slice evaluation by."
    )
    corrections: str = Field(
        "",
        description="A table of wrong labels as `safelight audit-labels` writes it, with the "
        "column `action` filled in (relabel, remove); a path from here, or below DATA.",
    )
    record_image: str = Field(
        "", description="TFRecords: the feature of the encoded image; by default image/encoded."
    )
    record_label: str = Field(
        "", description="TFRecords: the feature of the label; by default image/class/text|label."
    )
    record_group: str = Field("", description="TFRecords: the feature of the group, if any.")
    copies: str = Field(
        "", description="Folder for the copies of data in buckets; by default the user's cache."
    )

    @field_validator("targets", "class_columns", "slices")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # The table of images has one column for each.
        return tuple(dict.fromkeys(value))

    @field_validator("split")
    @classmethod
    def _three_shares(cls, value: str) -> str:
        try:
            shares = [float(part) for part in value.split("/")]
        except ValueError:
            shares = []
        if len(shares) != 3 or min(shares) <= 0 or not math.isclose(sum(shares), 100):
            raise ValueError("expected three positive shares that add up to 100, as in 70/10/20")
        return value

    @property
    def shares(self) -> tuple[float, float, float]:
        """The shares of train, eval and test; they add up to 1."""
        train, held_out, test = (float(part) / 100 for part in self.split.split("/"))
        return train, held_out, test


class Validation(Section):
    """What the gate behind ExampleValidator does about each finding."""

    anomalies: Mode = Field("fail", description="A TFDV anomaly against the curated schema.")
    absent_classes: Mode = Field(
        "fail", description="The served model knows a class that the data has no image of."
    )
    few_images: Mode = Field("fail", description="A class has too few images in a split.")
    min_images: int = Field(2, ge=1, description="Fewest images a class needs in train and test.")
    imbalance: Mode = Field("warn", description="The largest class dwarfs the smallest.")
    max_imbalance: float = Field(
        20.0, ge=1, description="Largest over smallest class in train before `imbalance` speaks."
    )
    unseen_labels: Mode = Field("fail", description="A class stands in test or eval, not in train.")
    split_mix: Mode = Field("warn", description="Splits hold the classes in different shares.")
    max_split_distance: float = Field(
        0.1, gt=0, le=1, description="L-infinity distance of class shares between two splits."
    )
    test_size: Mode = Field(
        "warn", description="The split test is too small for any model to show what is asked of it."
    )


class Transform(Section):
    """The graph from encoded bytes to pixels, shared by training, evaluation and serving."""

    image_size: int | None = Field(
        None, ge=8, le=1024, description="Side in pixels; by default chosen from the data."
    )
    channels: Literal[1, 3] | None = Field(
        None, description="1 (grey) or 3 (RGB); by default chosen from the data."
    )
    resize: Literal["stretch", "pad", "crop"] = Field(
        "stretch", description="How an image that is not square becomes square."
    )
    normalize: Literal["unit", "standard"] = Field(
        "unit",
        description="`unit`: values in [0, 1]. `standard`: zero mean and unit variance per "
        "channel, from a full pass over the facts recorded at ingest.",
    )
    max_pixels: int = Field(
        50_000_000, ge=1, description="Width x height that the serving graph decodes at most."
    )
