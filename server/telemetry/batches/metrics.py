"""Batches and their lines, and what files take, as metrics."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry

from server.telemetry.declared import Declared

_OPEN = ("validating", "in_progress", "finalizing", "cancelling")
_ENDS = ("completed", "failed", "expired", "cancelled")


class BatchMetrics(Declared):
    """The series of one server; all are 0 where it keeps no batches."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__(registry)
        self._open = self._gauge("batches_open", "Batches that have not ended, by status.", "status")
        self._ended = self._counter("batches_ended", "Batches that ended, by status.", "status")
        self._lines = self._counter(
            "batch_lines", "Lines of batches that ended: `completed`, or `failed` with an error.", "outcome"
        )
        self._retried = self._counter(
            "batch_line_retries", "Times a line was put off because the server was busy, or had failed on it."
        )
        self._running = self._gauge("batch_lines_running", "Lines of batches that are under way.")
        self._bytes = self._gauge("stored_file_bytes", "Bytes of the files that clients uploaded and batches wrote.")
        for end in _ENDS:
            self._ended.labels(end)
        for outcome in ("completed", "failed"):
            self._lines.labels(outcome)
        self.watch(lambda _: 0, lambda: 0)

    def watch(self, count: Callable[[str], int], held: Callable[[], int]) -> None:
        """Show how many batches have a status, and how many bytes are held."""
        for status in _OPEN:
            self._open.labels(status).set_function(lambda status=status: count(status))  # type: ignore[misc]
        self._bytes.set_function(held)

    def batch_ended(self, status: str) -> None:
        """A batch has ended so."""
        self._ended.labels(status).inc()

    @contextmanager
    def line_running(self) -> Iterator[None]:
        """A line is under way."""
        self._running.inc()
        try:
            yield
        finally:
            self._running.dec()

    def line_ended(self, outcome: str) -> None:
        """A line has ended so."""
        self._lines.labels(outcome).inc()

    def line_retried(self) -> None:
        """A line will be tried again."""
        self._retried.inc()
