"""Takes complete spans into the book; says what the others wait for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.config import Config
from pipeline.errors import DataRefused
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

    def take(self) -> list[str]:
        """Takes every complete span; returns what is said of the others."""
        waiting = []
        for span in spans.find(self._root, self._config.retrain.pattern):
            try:
                found = scan(str(span.path), self._config.ingest)
                complete = spans.marked(span) or self._settled(span, found.fingerprint)
            except DataRefused as error:
                if not span.path.is_dir():
                    continue  # deleted while it was looked at
                # Half a span may look like none: it is refused once it is complete.
                if spans.marked(span) or self._settled(span, f"refused: {error}"):
                    self._refuse(span, str(error))
                else:
                    waiting.append(f"{span.name}: {error}")
                continue
            except FileNotFoundError:
                continue  # deleted while it was looked at
            if complete:
                self._book.take(span.number, span.path, found.to_dict(), self._clock())
            else:
                waiting.append(f"{span.name} is not complete yet")
        return waiting

    def _settled(self, span: Span, fingerprint: str) -> bool:
        seconds = self._config.retrain.settle_minutes * 60
        now = self._clock()
        quiet = now - spans.last_change(span)
        if quiet >= 0 and quiet >= seconds:
            return True
        return self._book.settled(span.number, fingerprint, now, seconds)

    def _refuse(self, span: Span, reason: str) -> None:
        known = [one for one in self._book.latest() if one.number == span.number]
        mark = f"refused: {reason}"
        if known and known[-1].reason == mark:
            return
        facts = {"fingerprint": mark, "files": 0, "bytes": 0}
        record = self._book.take(span.number, span.path, facts, self._clock())
        self._quarantine(record, mark)
