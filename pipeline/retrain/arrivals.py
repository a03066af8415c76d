"""Takes complete spans into the book; says what the others wait for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.config import Config
from pipeline.errors import DataRefused, UsageError, bounded
from pipeline.ingest.scan import scan
from pipeline.retrain import spans
from pipeline.retrain.book import Book, Record
from pipeline.retrain.spans import Span

Quarantine = Callable[[Record, str], None]


class Arrivals:
    """One look at the folder of spans."""

    def __init__(
        self,
        root: Path,
        config: Config,
        book: Book,
        quarantine: Quarantine,
        clock: Callable[[], float],
    ) -> None:
        """Prepares the look.

        Args:
          root: the folder of spans.
          config: its sections `ingest` and `retrain`.
          book: gets the spans that are complete.
          quarantine: puts a record aside, with the reason.
          clock: seconds since 1970.
        """
        self._root = root
        self._config = config
        self._book = book
        self._quarantine = quarantine
        self._clock = clock
        self._settle_seconds = config.retrain.settle_minutes * 60

    def take(self) -> list[str]:
        """Takes every complete span; returns what is said of the others.

        Raises:
          UsageError: the folder is not there, or the spans known so far lie in another one.
        """
        pattern = self._config.retrain.pattern
        found = spans.find(self._root, pattern)
        self._refuse_others(found)
        if not found:
            return [spans.none_found(self._root, pattern)]
        waiting = []
        for span in found:
            try:
                waiting.append(self._one(span))
            except FileNotFoundError:
                continue  # deleted while it was looked at
        return [said for said in waiting if said]

    def _refuse_others(self, found: Sequence[Span]) -> None:
        """Refuses a second folder, or another pattern: its span 1 would pass for the first's."""
        here = {one.number: one.path for one in found}
        others = [
            one.path
            for one in self._elsewhere()
            if Path(one.path).is_dir() and not _same(here.get(one.number), Path(one.path))
        ]
        if others:
            raise UsageError(
                f"The spans that this workdir trains on lie elsewhere ({bounded(others)}), and one "
                f"window would mix them with those of {self._root} (retrain.pattern "
                f"{self._config.retrain.pattern}). Name their folder and pattern, or another "
                "--workdir for these; where they moved, remove what is left at the old place."
            )

    def gone(self) -> tuple[str, ...]:
        """Returns what is said of spans of another place, which is no longer there."""
        kept = [one.path for one in self._elsewhere() if one.state == "taken"]
        if not kept:
            return ()
        said = f"Gone, and not in {self._root}: {bounded(kept)}."
        return (f"{said} What was read of them still counts.",)

    def _elsewhere(self) -> list[Record]:
        pattern = self._config.retrain.pattern
        return [
            one
            for one in self._book.latest()
            if not spans.fits(Path(one.path), self._root, pattern)
        ]

    def _one(self, span: Span) -> str:
        """Takes or refuses a span that is complete; returns what is said of another."""
        try:
            found = scan(str(span.path), self._config.ingest)
        except DataRefused as error:
            return self._refuse(span, str(error), self._complete)
        except FileNotFoundError:
            raise
        except OSError as error:
            reason = (
                f"{span.path} can't be read ({error.strerror or error}). Mend its permissions, or "
                "the disk that it lies on."
            )
            # A network may mend itself, and no file's time tells since when this is so: it has to
            # last.
            return self._refuse(span, reason, self._lasts)
        if not self._complete(span, found.fingerprint):
            return f"{span.name} is not complete yet"
        self._book.take(span.number, span.path, found.to_dict(), self._clock())
        return ""

    def _refuse(self, span: Span, reason: str, is_due: Callable[[Span, str], bool]) -> str:
        """Puts a span aside where that is due: half a span may look like none."""
        mark = f"refused: {reason}"
        known = [one for one in self._book.latest() if one.number == span.number]
        if not span.path.is_dir() or (known and known[-1].reason == mark):
            return ""  # deleted while it was looked at, or put aside before
        if not is_due(span, mark):
            return f"{span.name}: {reason}"
        facts = {"fingerprint": mark, "files": 0, "bytes": 0}
        record = self._book.take(span.number, span.path, facts, self._clock())
        self._quarantine(record, mark)
        return ""

    def _complete(self, span: Span, fingerprint: str) -> bool:
        try:
            if spans.marked(span):
                return True
            quiet = self._clock() - spans.last_change(span)
        except PermissionError:
            return self._lasts(span, fingerprint)
        if quiet >= 0 and quiet >= self._settle_seconds:
            return True
        return self._lasts(span, fingerprint)

    def _lasts(self, span: Span, fingerprint: str) -> bool:
        return self._book.settled(span.number, fingerprint, self._clock(), self._settle_seconds)


def _same(here: Path | None, known: Path) -> bool:
    """Says whether a span is the known one: under two names, or now with versions below it."""
    return here is not None and (here.samefile(known) or here.is_relative_to(known))
