"""Which split an image belongs to: as the data says, else by hash of its group or its pixels.

A hash never changes its mind: the same image, under whatever name and however often, lies in one
split, and new images move none of those that were there before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from pipeline import features


@dataclass(frozen=True)
class Rule:
    """How a split is found.

    Attributes:
      shares: of train, eval and test, adding up to 1; for what the data does not decide.
      given: the splits that the data itself gives, before this rule renames them.
    """

    shares: tuple[float, float, float]
    given: frozenset[str] = frozenset()

    @property
    def held_out(self) -> frozenset[str]:
        """Splits besides train that the data gives."""
        return self.given - {features.TRAIN}

    def split_of(self, given: str | None, key: bytes) -> str:
        """Returns train, eval or test.

        Args:
          given: what the data says of this image, or None.
          key: what must not be torn apart: the group, or the hash of the pixels.
        """
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
    position = int.from_bytes(blake2b(key, digest_size=8).digest(), "big") / 2**64
    # Test first, then eval: the tests of two configurations of train/eval stay the same.
    if position < shares[2]:
        return features.TEST
    return features.EVAL if position < shares[2] + shares[1] else features.TRAIN
