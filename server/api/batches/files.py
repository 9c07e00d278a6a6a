"""`/v1/files`: what clients upload for batches, and what batches write."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fastapi import Request
from starlette.responses import FileResponse, Response

from configs.settings import Settings
from server.api.context import ServerContext
from server.api.endpoint import Call, DeleteEndpoint, Endpoint, GetEndpoint, json_response
from server.api.requests.query import number_of, one_of, parameter, whole_number
from server.batches.batches import Batches
from server.batches.records import StoredFile, new_id
from server.errors import InvalidRequest, NothingKept, NotKept, UnknownField
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
from server.to_thread import to_thread_if_larger

if TYPE_CHECKING:
    from server.api.batches.form import FormReader

FRAMING = 64 * 1024  # bytes around the file of a form: boundaries, headers, the other fields
_LIMIT = 10_000  # files of one list
_INLINE_FILES = 200  # about 5 us each to write
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS = ("purpose", _ANCHOR, _SECONDS)


def kept_by(context: ServerContext) -> Batches:
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
    from server.api.batches.form import FormReader  # plain serving has no use for its parser

    batches, settings = kept_by(call.context), call.context.settings
    file_id, owner = new_id("file"), owner_of(call)
    await batches.files.ensure_few(owner)
    async with batches.files.begin(file_id) as file:
        form = FormReader(call.request.headers.get("content-type"), file, settings.max_file_bytes)
        await form.read(call.request.stream())
        _check_form(form, settings)
        purpose, now = form.fields["purpose"], int(time.time())
        seconds = _seconds(form.fields, DEFAULT_SECONDS if purpose == "batch" else None)
        stored = StoredFile(
            id=file_id,
            owner=owner,
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


def _check_form(form: "FormReader", settings: Settings) -> None:
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
    return number_of(_SECONDS, seconds, LEAST_SECONDS, MOST_SECONDS, "expires_after.seconds")


async def _list(call: Call) -> Response:
    query, batches = call.request.query_params, kept_by(call.context)
    found, more = await batches.files.page(
        owner_of(call),
        after=query.get("after"),
        limit=whole_number(query, "limit", _LIMIT, _LIMIT),
        ascending=one_of(query, "order", "desc", ("asc", "desc")) == "asc",
        purpose=one_of(query, "purpose", None, (*PURPOSES, "batch_output")),
    )
    return await to_thread_if_larger(len(found), _INLINE_FILES, lambda: json_response(_file_list(found, more)))


def _file_list(files: Sequence[StoredFile], more: bool) -> FileList:
    data = [file_answer(file) for file in files]
    return FileList(
        data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=more
    )


async def _asked_for(call: Call) -> StoredFile:
    return await kept_by(call.context).files.find(call.request.path_params["file"], owner_of(call))


async def _one(call: Call) -> FileAnswer:
    return file_answer(await _asked_for(call))


async def _content(call: Call) -> Response:
    file = await _asked_for(call)
    path = kept_by(call.context).files.path(file.id)
    if not await asyncio.to_thread(path.is_file):  # somebody has removed it from the folder
        raise NotKept(f"What file {file.id!r} held is no more.")
    return FileResponse(path, media_type="application/octet-stream", filename=file.name)


async def _delete(call: Call) -> DeletedFile:
    file = await _asked_for(call)
    await kept_by(call.context).delete_file(file)
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
