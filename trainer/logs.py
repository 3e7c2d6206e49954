"""An attempt's logs as JSON lines below the run's artifact folder."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Literal, cast

from trainer.errors import StorageError
from trainer.spec.job import LogLine
from trainer.spec.names import log_folder
from trainer.storage import Store, patience

CHUNK_BYTES = 256 * 1024
FLUSH_SECONDS, REMOTE_FLUSH_SECONDS = 1.0, 3.0
"""How late a line may be on a disk, and in an object store, which charges for each write."""
PATIENCE_SECONDS = 10.0
CLOSE_TRIES = 3

logger = logging.getLogger("rcmae")

Level = Literal["debug", "info", "warning", "error"]


class LogWriter(logging.Handler):
    """Writes records as `LogLine` JSON to ``logs/<source>.<chunk>.jsonl``, seconds late at most.

    Object stores cannot append, so the newest chunk is written anew until it is full.
    """

    def __init__(self, store: Store, attempt: int, source: str) -> None:
        super().__init__()
        self._store, self._folder, self._source = store, log_folder(attempt), source
        self._buffer = bytearray()
        self._chunk, self._written = 1, 0
        self._stored = True
        """Whether the last write succeeded."""
        self._write_lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"logs-{source}", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001 - logging's own rule: a bad log call never ends the program
            self.handleError(record)
            return
        level = record.levelname.lower()
        line = LogLine(
            time=record.created,
            level=cast(Level, level if level in {"debug", "info", "warning"} else "error"),
            source=self._source,
            message=text.encode(errors="backslashreplace").decode(),  # file names may be no Unicode
        )
        self._buffer += line.model_dump_json().encode() + b"\n"

    def flush(self) -> None:
        """Store what has been logged so far, or else keep it for the next time: no need to try for long."""
        with self._write_lock, patience(PATIENCE_SECONDS):
            with self._guard():
                data = bytes(self._buffer)
            if len(data) == self._written:
                return
            try:
                self._store.write(f"{self._folder}/{self._source}.{self._chunk:04d}.jsonl", data)
            except StorageError as error:
                # The lines stay in the buffer and go with the next write; standard error reaches Ray's own log.
                print(f"log lines not stored yet: {error}", file=sys.stderr)  # noqa: T201 - no other place is left
                self._stored = False
                return
            self._written, self._stored = len(data), True
            if self._written >= CHUNK_BYTES:
                with self._guard():
                    del self._buffer[: self._written]
                self._chunk, self._written = self._chunk + 1, 0

    def close(self) -> None:
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=30)
        for _ in range(CLOSE_TRIES if self._stored else 1):
            self.flush()
            if self._stored:
                break
        super().close()

    def _guard(self) -> threading.RLock:
        assert self.lock is not None  # noqa: S101 - logging.Handler always makes one
        return self.lock

    def _run(self) -> None:
        while not self._ended.wait(FLUSH_SECONDS if self._store.is_local else REMOTE_FLUSH_SECONDS):
            self.flush()


def start_logging(store: Store, attempt: int, source: str) -> LogWriter:
    """Send this process's log records, warnings too, to the attempt's logs and to standard error."""
    writer = LogWriter(store, attempt, source)
    writer.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.addHandler(writer)
    root.setLevel(logging.INFO)
    # Ray Train notes every report with the whole of its arguments: what matters of it is in our own lines.
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    return writer


def stop_logging(writer: LogWriter) -> None:
    """Store the last lines; a process that is used again starts clean."""
    logging.getLogger().removeHandler(writer)
    writer.close()
