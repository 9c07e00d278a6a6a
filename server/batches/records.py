"""What is kept of files and batches. Times are Unix seconds."""

import secrets
from dataclasses import dataclass, field
from typing import Literal

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
BatchEnd = Literal["completed", "expired", "cancelled", "failed"]
Outcome = Literal["completed", "failed"]  # of a line


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file. `owner`: name of the tenant that made it; empty where no keys are required."""

    id: str
    owner: str
    purpose: str
    name: str
    bytes: int
    created: int
    expires: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineError:
    """What is wrong with an input file: in which of its lines, counted from 1, and with which field there."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(slots=True, kw_only=True)
class StoredBatch:
    """A batch as it is kept, without the counts of its lines that ended.

    Attributes:
        owner: as of a file.
        key: name of the key that made it, as which its lines are run; empty where no keys are required.
        until: by when it has to be done.
        output_seconds: how long the files with its results are kept.
        total: lines of the input; 0 until they were checked.
        times: when it came into a status.
        end: what it will be when the lines that have ended are written to files; None while it runs.
    """

    id: str
    owner: str
    key: str
    endpoint: str
    input_file: str
    window: str
    created: int
    until: int
    output_seconds: int
    metadata: dict[str, str] | None = None
    status: BatchStatus = "validating"
    end: BatchEnd | None = None
    total: int = 0
    times: dict[str, int] = field(default_factory=dict)
    errors: list[LineError] = field(default_factory=list)
    output_file: str | None = None
    error_file: str | None = None

    @property
    def open(self) -> bool:
        """Whether there is still something to do."""
        return self.status not in ("failed", "completed", "expired", "cancelled")

    def becomes(self, status: BatchStatus, now: int) -> None:
        """It is in another status from now on."""
        self.status = status
        self.times[status] = now


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCounts:
    """Lines of a batch that have ended."""

    completed: int = 0
    failed: int = 0


def new_id(kind: str) -> str:
    """An id that nobody can guess."""
    return f"{kind}-{secrets.token_hex(16)}" if kind == "file" else f"{kind}_{secrets.token_hex(16)}"
