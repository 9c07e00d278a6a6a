"""The bodies and answers of `/v1/files` and `/v1/batches`. Times are Unix seconds."""

from typing import Any, ClassVar, Literal, get_args

from pydantic import Field

from server.schema.answers import AnswerBody
from server.schema.base import Body
from server.schema.fields import Metadata

LEAST_SECONDS, MOST_SECONDS = 3600, 30 * 24 * 3600  # for which a file may be kept, if a time is given
DEFAULT_SECONDS = MOST_SECONDS  # of files of batches
FilePurpose = Literal["assistants", "batch", "batch_output", "evals", "fine-tune", "user_data", "vision"]
# What a file may be uploaded for. Only those for `batch` have a use here.
PURPOSES = tuple(purpose for purpose in get_args(FilePurpose) if purpose != "batch_output")


class ExpiresAfter(Body):
    """How long a file is kept."""

    anchor: Literal["created_at"] = Field(description="From when the seconds count.")
    seconds: int = Field(ge=LEAST_SECONDS, le=MOST_SECONDS)


class BatchRequest(Body):
    """A new batch: every line of a file as a request to one endpoint."""

    NESTED: ClassVar[dict[str, Any]] = {"output_expires_after": ExpiresAfter}

    input_file_id: str = Field(description="A file that was uploaded with purpose `batch`.")
    endpoint: str = Field(description="Path of the endpoint to which its requests go.")
    completion_window: Literal["24h"] = Field(description="By when it has to be done.")
    metadata: Metadata | None = Field(None, description="Up to 16 pairs that come back with the batch.")
    output_expires_after: ExpiresAfter | None = Field(
        None, description="How long the files with its results are kept; 30 days if absent."
    )


class FileAnswer(AnswerBody):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: FilePurpose
    status: Literal["processed"] = "processed"


class FileList(AnswerBody):
    """Files by the time of their making."""

    object: Literal["list"] = "list"
    data: list[FileAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(AnswerBody):
    """A file that is no more."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchError(AnswerBody):
    """What is wrong with an input file."""

    code: str
    line: int | None = Field(description="Of the file, counted from 1.")
    message: str
    param: str | None = Field(description="The line's field at fault, as a path.")


class BatchErrors(AnswerBody):
    """Why a batch failed."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(AnswerBody):
    """Requests of a batch."""

    total: int = Field(description="0 until the input file was checked.")
    completed: int
    failed: int


class BatchAnswer(AnswerBody):
    """A batch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(AnswerBody):
    """Batches, the newest first."""

    object: Literal["list"] = "list"
    data: list[BatchAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool
