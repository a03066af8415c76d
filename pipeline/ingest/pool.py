"""Children that decode, in order, with bounded work in flight, and none of them indispensable.

`multiprocessing` would import the parent's main module in every child, and with it TFX; these
children are plain `python -m pipeline.ingest.child` processes. When one dies or hangs, its chunk
is tried again file by file: the culprit is quarantined, and everything else goes on.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from pipeline.config import Ingest
from pipeline.errors import SafelightError
from pipeline.ingest.child import FRAME, Bad, Good, Result, Settings
from pipeline.ingest.entries import Entry, Listing, cut

CHUNK_BYTES = 2 * 2**20
CHUNK_FILES = 128
START_TIMEOUT = 120.0


# Where the encoded image and the label are looked for in foreign TFRecords.
RECORD_IMAGE = ("image/encoded", "image", "image_raw")
RECORD_LABEL = ("image/class/text", "label", "image/class/label")


class _Died(Exception):
    """The child is gone; the text says how."""


def chunks(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Cuts entries into runs of at most CHUNK_FILES files and about CHUNK_BYTES bytes."""
    return cut(entries, CHUNK_FILES, CHUNK_BYTES)


def settings_for(found: Listing, options: Ingest, unpacked: Path | None = None) -> Settings:
    """Returns what the children need to know of the configuration and of the data.

    Args:
      found: the listing.
      options: the `ingest` section.
      unpacked: where compressed TFRecords were unpacked, if they were.
    """
    return Settings(
        root=os.fsencode(found.root),
        min_side=options.min_side,
        max_pixels=options.max_pixels,
        describe=options.near_duplicates != "off",
        record_image=(options.record_image,) if options.record_image else RECORD_IMAGE,
        record_label=(options.record_label,) if options.record_label else RECORD_LABEL,
        record_group=(options.record_group,) if options.record_group else (),
        unpacked=b"" if unpacked is None else os.fsencode(unpacked),
    )


def worker_count(wanted: int, files: int) -> int:
    """Returns how many children are worth starting for so many files."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(wanted or cores, -(-files // CHUNK_FILES)))


class Pool:
    """A number of decoding children; use it as a context manager.

    Args:
      workers: how many.
      settings: what each is told.
      timeout: seconds that one file may take before its child is given up.
    """

    def __init__(self, workers: int, settings: Settings, timeout: float = 60.0) -> None:
        self._settings = settings
        self._timeout = timeout
        self._workers = workers
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._children = [_Child(settings) for _ in range(workers)]
        for child in self._children:
            self._idle.put(child)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="ingest")

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the children, at once."""
        for child in self._children:
            child.end()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def map(self, work: Iterable[Sequence[Entry]]) -> Iterator[list[Result]]:
        """Yields the results of each chunk, in the order of the chunks."""
        waiting: deque[Future[list[Result]]] = deque()
        for chunk in work:
            waiting.append(self._threads.submit(self._run, chunk))
            if len(waiting) > 2 * self._workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _run(self, chunk: Sequence[Entry]) -> list[Result]:
        child = self._idle.get()
        try:
            return child.ask(chunk, self._timeout)
        except _Died:
            child.restart()
            return [self._run_alone(child, entry) for entry in chunk]
        finally:
            self._idle.put(child)

    def _run_alone(self, child: _Child, entry: Entry) -> Result:
        try:
            return child.ask([entry], self._timeout)[0]
        except _Died as death:
            child.restart()
            return Bad("unreadable", str(death), entry.label)


class _Child:
    """One child process and the pipes to it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ended = False
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = dict(os.environ, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self._ready = False
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.ingest.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def _greet(self) -> None:
        """Hands over the settings; a child that never answers is no file's fault."""
        try:
            self._send(pickle.dumps(self._settings))
            self._receive(FRAME.size, time.monotonic() + START_TIMEOUT, START_TIMEOUT)
        except _Died as death:
            if self._ended:
                raise
            raise SafelightError(
                f"A decoding process did not start: {death}. It runs `{sys.executable} -m "
                "pipeline.ingest.child`; what it printed is in the run's log."
            ) from None
        self._ready = True

    def restart(self) -> None:
        """Replaces the process, unless the pool is being closed."""
        self._kill()
        if not self._ended:
            self._process = self._start()

    def end(self) -> None:
        """Kills the process for good."""
        self._ended = True
        self._kill()

    def ask(self, chunk: Sequence[Entry], timeout: float) -> list[Result]:
        """Sends a chunk and returns its results, or raises _Died."""
        if not self._ready:
            self._greet()
        self._send(pickle.dumps([tuple(entry) for entry in chunk], protocol=5))
        size = 0
        while not size:  # an empty frame says that a part is done: the next has as long
            deadline = time.monotonic() + timeout
            size = FRAME.unpack(self._receive(FRAME.size, deadline, timeout))[0]
        answer = pickle.loads(self._receive(size, deadline, timeout))
        return [
            Good(*result) if len(result) > len(Bad._fields) else Bad(*result) for result in answer
        ]

    def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(FRAME.pack(len(message)) + message)
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise _Died(self._how_it_died()) from None

    def _receive(self, size: int, deadline: float, timeout: float) -> bytearray:
        assert self._process.stdout is not None
        stream = self._process.stdout.fileno()
        body = bytearray(size)
        view, filled = memoryview(body), 0
        poll = select.poll()
        poll.register(stream, select.POLLIN)
        while filled < size:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise _Died(f"decoding took longer than {timeout:g} s")
            count = os.readv(stream, [view[filled:]])
            if count == 0:
                raise _Died(self._how_it_died())
            filled += count
        return body

    def _how_it_died(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "the decoder stopped answering"
        if code < 0:
            return f"the decoder crashed ({signal.Signals(-code).name})"
        return f"the decoder ended with code {code}"

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # what was still buffered for a dead child
                stream.close()
