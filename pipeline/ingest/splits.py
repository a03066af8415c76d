"""Which split an image belongs to: as the data says, else by hash of its group or its pixels.

A hash never changes its mind: the same image, under whatever name and however often, lies in one
split, and new images move none of those that were there before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b

from pipeline import features

_CALIB = b"calib"


@dataclass(frozen=True)
class Rule:
    """How a split is found.

    Attributes:
      shares: of train, eval and test, adding up to 1; for what the data does not decide.
      given: the splits that the data itself gives, before this rule renames them.
      calib: share of what would go to train that goes to calib, by a hash of its own: whether it
        is on or off, eval and test hold the same images.
    """

    shares: tuple[float, float, float]
    given: frozenset[str] = frozenset()
    calib: float = 0.0

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are."""
        return features.SPLITS_WITH_CALIB if self.calib else features.SPLITS

    @property
    def held_out(self) -> frozenset[str]:
        """Splits besides train that the data gives."""
        return self.given - {features.TRAIN}

    def split_of(self, given: str | None, key: bytes) -> str:
        """Returns train, calib, eval or test.

        Args:
          given: what the data says of this image, or None.
          key: what must not be torn apart: the group, or the hash of the pixels.
        """
        split = self._split_of(given, key)
        if split == features.TRAIN and self.calib and _position(key, _CALIB) < self.calib:
            return features.CALIB
        return split

    def _split_of(self, given: str | None, key: bytes) -> str:
        if not self.held_out:
            return _by_share(key, self.shares)
        if given in self.held_out:
            # A single held-out split is what blesses; what chooses is then carved from train.
            return given if len(self.held_out) == 2 else features.TEST
        if len(self.held_out) == 2:
            return features.TRAIN
        train, chosen, _ = self.shares
        whole = train + chosen
        return _by_share(key, (train / whole, chosen / whole, 0.0))

    def describe(self) -> str:
        """Returns a sentence on where the splits come from."""
        if self.calib:
            plain = replace(self, calib=0.0).describe()
            return f"{plain}; {100 * self.calib:g} % of train are calib, by hash"
        if len(self.held_out) == 2:
            return "train, eval and test as the data gives them"
        if self.held_out:
            (name,) = self.held_out
            return f"test is the data's held-out split ({name}); eval is carved from train by hash"
        return "by hash: " + "/".join(f"{100 * share:g}" for share in self.shares)


def group_key(group: str) -> bytes:
    """Returns the key of a group; no hash of pixels can equal it."""
    return b"group:" + group.encode("utf-8", "surrogateescape")


def given_splits(splits: Iterable[str | None]) -> frozenset[str]:
    """Returns the splits that occur."""
    return frozenset(split for split in splits if split is not None)


def _by_share(key: bytes, shares: tuple[float, float, float]) -> str:
    position = _position(key)
    # Test first, then eval: the tests of two configurations of train/eval stay the same.
    if position < shares[2]:
        return features.TEST
    return features.EVAL if position < shares[2] + shares[1] else features.TRAIN


def _position(key: bytes, purpose: bytes = b"") -> float:
    """Returns a number in [0, 1) that the key decides, another one for each purpose."""
    return int.from_bytes(blake2b(key, digest_size=8, person=purpose).digest(), "big") / 2**64
