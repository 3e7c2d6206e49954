"""An attempt's logs as JSON lines below the run's artifact folder."""

from __future__ import annotations

import json
import logging
import sys
import threading
from dataclasses import dataclass
from typing import Literal, cast

from trainer.errors import StorageError
from trainer.logger import logger
from trainer.protocol.logs import LogLine
from trainer.protocol.names import log_folder
from trainer.protocol.request import AttemptRequest
from trainer.storage import Store, patience

CHUNK_BYTES = 256 * 1024
FLUSH_SECONDS, REMOTE_FLUSH_SECONDS = 1.0, 3.0
"""How often lines are written to a disk, and to an object store, which charges for each write."""
PATIENCE_SECONDS = 10.0
"""How long one write is retried."""
CLOSE_TRIES = 3

Level = Literal["debug", "info", "warning", "error"]


class LogWriter(logging.Handler):
    """Writes records as `LogLine` JSON to ``logs/<source>.<chunk>.jsonl``, with a delay of a few seconds.

    Object stores cannot append, so the newest chunk is written again and again until it is full.
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
        except Exception:  # noqa: BLE001 - as in logging's own handlers, a bad log call never ends the program
            self.handleError(record)
            return
        self._buffer += _line(record, self._source, text).model_dump_json().encode() + b"\n"

    def flush(self) -> None:
        """Store all lines so far. If that fails, they are kept for the next call, so it is not retried for long."""
        with self._write_lock, patience(PATIENCE_SECONDS):
            with self._guard():
                data = bytes(self._buffer)
            if len(data) == self._written:
                return
            try:
                self._store.write(f"{self._folder}/{self._source}.{self._chunk:04d}.jsonl", data)
            except StorageError as error:
                # The lines stay in the buffer for the next write. Standard error ends up in Ray's own log.
                print(f"log lines not stored yet: {error}", file=sys.stderr)  # noqa: T201 - nowhere else to report it
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


class _FormatterWithIds(logging.Formatter):
    """A `LogLine` as JSON with the ids of job, attempt and request, for logs that hold lines of many jobs."""

    def __init__(self, source: str, ids: dict[str, str | int]) -> None:
        super().__init__("%(message)s")
        self._source, self._ids = source, ids

    def format(self, record: logging.LogRecord) -> str:
        line = _line(record, self._source, super().format(record))
        return json.dumps(line.model_dump() | self._ids)


def _line(record: logging.LogRecord, source: str, text: str) -> LogLine:
    level = record.levelname.lower()
    return LogLine(
        time=record.created,
        level=cast(Level, level if level in {"debug", "info", "warning"} else "error"),
        source=source,
        message=text.encode(errors="backslashreplace").decode(),  # file names may be invalid Unicode
    )


@dataclass(frozen=True)
class Logging:
    """The logging of a process, as `start_logging` has set it up."""

    writer: LogWriter
    previous_handlers: list[logging.Handler]


def start_logging(store: Store, request: AttemptRequest, source: str) -> Logging:
    """Send this process's log records, warnings included, to the attempt's logs and to standard error.

    On standard error, which Ray stores together with that of other jobs, each line has the ids of the job, the attempt
    and the request. In the attempt's own logs only the first line names them: in every line they would make the logs
    half as large again.
    """
    writer = LogWriter(store, request.attempt, source)
    writer.setFormatter(logging.Formatter("%(message)s"))
    ids: dict[str, str | int] = {"job_id": request.job_id, "attempt": request.attempt}
    if request.request_id:
        ids["request_id"] = request.request_id
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_FormatterWithIds(source, ids))
    root = logging.getLogger()
    # These replace Ray Train's handlers, which would write every line a second and a third time.
    previous_handlers, root.handlers = root.handlers, [writer, stream]
    root.setLevel(logging.INFO)
    # Ray Train logs every report with all its arguments; our own lines say what matters.
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    for name in ("matplotlib", "onnx_ir", "onnxscript"):  # they log their caches and every rewritten node
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    cause = f", submitted by request {request.request_id}" if request.request_id else ""
    logger.info("Attempt %d of %s begins%s", request.attempt, request.job_id, cause)
    return Logging(writer, previous_handlers)


def stop_logging(started: Logging) -> None:
    """Store the last lines and restore the previous handlers, since the process may run another attempt."""
    logging.getLogger().handlers = started.previous_handlers
    started.writer.close()
