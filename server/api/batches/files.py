"""`/v1/files`: what clients upload for batches, and what batches write."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from fastapi import Request
from starlette.responses import FileResponse, Response

from configs.settings import Settings
from server.api.batches.form import FRAMING, FormReader
from server.api.batches.query import one_of, parameter, whole_number
from server.api.context import ServerContext
from server.api.endpoint import Call, DeleteEndpoint, Endpoint, GetEndpoint, json_response
from server.batches.batches import Batches
from server.batches.records import StoredFile, new_id
from server.errors import InvalidRequest, NothingKept, UnknownField
from server.schema.batches import (
    DEFAULT_SECONDS,
    LEAST_SECONDS,
    MOST_SECONDS,
    PURPOSES,
    DeletedFile,
    FileAnswer,
    FileList,
)
from server.schema.openapi import ModelBounds
from server.schema.shown import shown

_LIMIT = 10_000  # files of one list
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS = ("purpose", _ANCHOR, _SECONDS)


def batches_of(context: ServerContext) -> Batches:
    """What the server keeps.

    Raises:
        NothingKept: it was given no folder.
    """
    if context.batches is None:
        raise NothingKept("This server keeps neither files nor batches: it has to be started with --data-dir FOLDER.")
    return context.batches


def owner_of(call: Call) -> str:
    """Whose files and batches a request is about."""
    return call.tenant.name or ""


def file_answer(file: StoredFile) -> FileAnswer:
    """A file as clients see it."""
    return FileAnswer(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created,
        expires_at=file.expires,
        filename=file.name,
        purpose=file.purpose,  # type: ignore[arg-type]  # what else is uploaded is refused
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadEndpoint(Endpoint):
    """A request whose body is a form with a file.

    Attributes:
        answer: takes the form.
    """

    method: ClassVar[str] = "POST"
    answer: Callable[[Call], Awaitable[FileAnswer]]

    async def respond(self, request: Request, context: ServerContext) -> Response:
        """Keep the file, answer."""
        return json_response(await self.answer(Call(request, context)))

    def body_limit(self, settings: Settings) -> tuple[int, str]:
        """The file, and what is around it."""
        if settings.data_dir is None:
            return settings.max_body_bytes, "max_body_bytes"
        return settings.max_file_bytes + FRAMING, "max_file_bytes, and what is around the file"

    def openapi(self, settings: Settings, bounds: ModelBounds | None) -> dict[str, Any]:
        """The form's schema."""
        text = {"type": "string"}
        schema = {
            "type": "object",
            "required": ["file", "purpose"],
            "properties": {
                "file": {**text, "format": "binary", "description": f"At most {settings.max_file_bytes} bytes."},
                "purpose": {**text, "enum": list(PURPOSES), "description": "Only `batch` has a use here."},
                _ANCHOR: {**text, "enum": ["created_at"], "description": "With the seconds."},
                _SECONDS: {**text, "description": f"How long it is kept: {LEAST_SECONDS} to {MOST_SECONDS}."},
            },
        }
        return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


async def _upload(call: Call) -> FileAnswer:
    batches, settings = batches_of(call.context), call.context.settings
    file_id = new_id("file")
    with batches.files.begin(file_id) as file:
        form = FormReader(call.request.headers.get("content-type"), file, settings.max_file_bytes)
        await form.read(call.request.stream())
        _check_form(form, settings)
        purpose, now = form.fields["purpose"], int(time.time())
        seconds = _seconds(form.fields, DEFAULT_SECONDS if purpose == "batch" else None)
        stored = StoredFile(
            id=file_id,
            owner=owner_of(call),
            purpose=purpose,
            name=(form.file_name or "file")[:255],
            bytes=file.size,
            created=now,
            expires=None if seconds is None else now + seconds,
        )
        await file.close()
        await batches.files.add(stored)
        file.keep()
    return file_answer(stored)


def _check_form(form: FormReader, settings: Settings) -> None:
    for name, given in (("file", form.file_name), ("purpose", form.fields.get("purpose"))):
        if given is None:
            raise InvalidRequest(f"`{name}` is missing", param=name)
    unknown = next((name for name in form.fields if name not in _FIELDS), None)
    if unknown is not None and settings.unknown_fields == "refuse":
        known = ", ".join(f"`{name}`" for name in ("file", *_FIELDS))
        raise UnknownField(f"{shown(unknown)} is not a known field; the form has {known}", param=unknown[:100])
    purpose = form.fields["purpose"]
    if purpose not in PURPOSES:
        raise InvalidRequest(f"`purpose` must be one of {', '.join(PURPOSES)}, got {shown(purpose)}", param="purpose")


def _seconds(fields: dict[str, str], default: int | None) -> int | None:
    """How long the file is kept; None: until it is deleted."""
    if _ANCHOR not in fields and _SECONDS not in fields:
        return default
    anchor, seconds = fields.get(_ANCHOR), fields.get(_SECONDS, "")
    if anchor != "created_at":
        raise InvalidRequest(f'`{_ANCHOR}` must be "created_at", got {shown(anchor)}', param="expires_after.anchor")
    if not (seconds.isascii() and seconds.isdecimal() and LEAST_SECONDS <= int(seconds[:12]) <= MOST_SECONDS):
        told = f"`{_SECONDS}` must be a whole number from {LEAST_SECONDS} to {MOST_SECONDS}, got {shown(seconds)}"
        raise InvalidRequest(told, param="expires_after.seconds")
    return int(seconds)


async def _list(call: Call) -> FileList:
    query, batches = call.request.query_params, batches_of(call.context)
    found, more = await batches.files.page(
        owner_of(call),
        after=query.get("after"),
        limit=whole_number(query, "limit", _LIMIT, _LIMIT),
        ascending=one_of(query, "order", "desc", ("asc", "desc")) == "asc",
        purpose=one_of(query, "purpose", None, (*PURPOSES, "batch_output")),
    )
    data = [file_answer(file) for file in found]
    return FileList(
        data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=more
    )


async def _asked_for(call: Call) -> StoredFile:
    return await batches_of(call.context).files.find(call.request.path_params["file"], owner_of(call))


async def _one(call: Call) -> FileAnswer:
    return file_answer(await _asked_for(call))


async def _content(call: Call) -> Response:
    file = await _asked_for(call)
    path = batches_of(call.context).files.path(file.id)
    return FileResponse(path, media_type="application/octet-stream", filename=file.name)


async def _delete(call: Call) -> DeletedFile:
    file = await _asked_for(call)
    await batches_of(call.context).delete_file(file)
    return DeletedFile(id=file.id)


_ID = {"name": "file", "in": "path", "required": True, "schema": {"type": "string"}}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

UPLOAD = UploadEndpoint(
    path="/v1/files",
    tag="batches",
    summary="Upload a file",
    answer=_upload,
    answers=FileAnswer,
    errors=(400, 401, 404, 413, 415, 507),
)
ENDPOINTS: tuple[Endpoint, ...] = (
    UPLOAD,
    GetEndpoint(
        path="/v1/files",
        tag="batches",
        summary="The files of this key",
        answer=_list,
        answers=FileList,
        errors=(400, 401, 404),
        parameters=(
            parameter("after", "Id of the file before the first.", type="string"),
            parameter("limit", "Of files.", type="integer", minimum=1, maximum=_LIMIT, default=_LIMIT),
            parameter("order", "By the time of their making.", type="string", enum=["asc", "desc"], default="desc"),
            parameter("purpose", "Of files.", type="string", enum=[*PURPOSES, "batch_output"]),
        ),
    ),
    GetEndpoint(
        path="/v1/files/{file}",
        tag="batches",
        summary="One of the files",
        answer=_one,
        answers=FileAnswer,
        errors=(401, 404),
        parameters=(_ID,),
    ),
    GetEndpoint(
        path="/v1/files/{file}/content",
        tag="batches",
        summary="What a file holds",
        answer=_content,
        errors=(401, 404),
        content=_BYTES,
        parameters=(_ID,),
    ),
    DeleteEndpoint(
        path="/v1/files/{file}",
        tag="batches",
        summary="Delete a file that no open batch reads",
        answer=_delete,
        answers=DeletedFile,
        errors=(401, 404, 409),
        parameters=(_ID,),
    ),
)
