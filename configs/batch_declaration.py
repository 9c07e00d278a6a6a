"""Knobs of files and batches, declared as those of `configs/declaration.py` are."""

from pydantic import Field
from pydantic.config import JsonDict

from configs.declaration import PositiveInt, Text
from configs.observability import Observability

BATCHES: JsonDict = {"section": "files and batches"}


class BatchDeclaration(Observability):
    """These, after the others."""

    data_dir: Text | None = Field(
        None,
        description="A folder for files and batches, which outlive the server; none = /v1/files and /v1/batches are refused. One "
        "server at a time.",
        json_schema_extra=BATCHES,
    )
    max_file_bytes: int = Field(
        200 * 2**20, ge=1024, description="Largest file in bytes; more is a 413.", json_schema_extra=BATCHES
    )
    max_stored_bytes: int = Field(
        16 * 2**30,
        ge=1024,
        description="Most bytes of all files together; a file for which there is no room is refused with 507. What batches write "
        "counts, and is always written.",
        json_schema_extra=BATCHES,
    )
    max_batch_lines: PositiveInt = Field(50_000, description="Most requests of one batch.", json_schema_extra=BATCHES)
    batch_step_tokens: PositiveInt | None = Field(
        None,
        description="Tokens of a step that batches may have, and how many of their sequences run; beside other sequences a quarter "
        "of that, beside their prompts none. If absent a sixteenth of max_step_tokens, since whoever comes waits for the step that "
        "is under way. On a server for batches alone, as many as max_step_tokens.",
        json_schema_extra=BATCHES,
    )
