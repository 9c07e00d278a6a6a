"""`/v1/batches`: files of requests, run on what nobody else needs."""

from starlette.responses import Response

from server.api.batches.files import kept_by, owner_of
from server.api.batches.lines import BATCHED
from server.api.context import ServerContext
from server.api.endpoint import ActionEndpoint, Call, Endpoint, GetEndpoint, PostEndpoint, json_response
from server.api.requests.query import parameter, whole_number
from server.api.tenants import Tenant
from server.batches.records import BatchCounts, StoredBatch
from server.errors import InvalidRequest
from server.schema.batches import (
    DEFAULT_SECONDS,
    BatchAnswer,
    BatchError,
    BatchErrors,
    BatchList,
    BatchRequest,
    RequestCounts,
)
from server.schema.shown import shown

_LIMIT = 100  # batches of one list


def batch_answer(batch: StoredBatch, counts: BatchCounts) -> BatchAnswer:
    """A batch as clients see it."""
    errors = [BatchError(code=e.code, line=e.line, message=e.message, param=e.param) for e in batch.errors]
    shown_files = batch.end is not None and not batch.open
    return BatchAnswer(
        id=batch.id,
        endpoint=batch.endpoint,
        errors=BatchErrors(data=errors) if errors else None,
        input_file_id=batch.input_file,
        completion_window=batch.window,
        status=batch.status,
        output_file_id=batch.output_file if shown_files else None,
        error_file_id=batch.error_file if shown_files else None,
        created_at=batch.created,
        in_progress_at=batch.times.get("in_progress"),
        expires_at=batch.until,
        finalizing_at=batch.times.get("finalizing"),
        completed_at=batch.times.get("completed"),
        failed_at=batch.times.get("failed"),
        expired_at=batch.times.get("expired"),
        cancelling_at=batch.times.get("cancelling"),
        cancelled_at=batch.times.get("cancelled"),
        request_counts=RequestCounts(total=batch.total, completed=counts.completed, failed=counts.failed),
        metadata=batch.metadata,
    )


def _asked(body: BatchRequest, context: ServerContext, tenant: Tenant) -> BatchRequest:
    """The body: what else can be wrong with it depends on what is kept."""
    return body


async def _create(body: BatchRequest, call: Call) -> Response:
    batches, owner = kept_by(call.context), owner_of(call)
    if body.endpoint not in batches.endpoints:
        told = f"`endpoint` must be one of {', '.join(batches.endpoints)}, got {shown(body.endpoint)}"
        raise InvalidRequest(told, param="endpoint")
    file = await batches.files.find(body.input_file_id, owner)
    if file.purpose != "batch":
        told = f'`input_file_id` must be a file with purpose "batch", got one with {shown(file.purpose)}'
        raise InvalidRequest(told, param="input_file_id")
    kept = body.output_expires_after
    batch = await batches.create(
        owner=owner,
        key=call.tenant.key or "",
        endpoint=body.endpoint,
        file=file,
        metadata=body.metadata,
        output_seconds=DEFAULT_SECONDS if kept is None else kept.seconds,
    )
    return json_response(batch_answer(batch, BatchCounts()), call.headers)


async def _list(call: Call) -> BatchList:
    query = call.request.query_params
    found, more = await kept_by(call.context).page(
        owner_of(call), after=query.get("after"), limit=whole_number(query, "limit", 20, _LIMIT)
    )
    data = [batch_answer(*known) for known in found]
    return BatchList(
        data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=more
    )


async def _one(call: Call) -> BatchAnswer:
    return batch_answer(*await kept_by(call.context).find(call.request.path_params["batch"], owner_of(call)))


async def _cancel(call: Call) -> BatchAnswer:
    return batch_answer(*await kept_by(call.context).cancel(call.request.path_params["batch"], owner_of(call)))


_ID = {"name": "batch", "in": "path", "required": True, "schema": {"type": "string"}}
_EXAMPLE = {"input_file_id": "file-0123", "endpoint": BATCHED[0], "completion_window": "24h"}

ENDPOINTS: tuple[Endpoint, ...] = (
    PostEndpoint(
        path="/v1/batches",
        tag="batches",
        summary="Run the requests of a file",
        body=BatchRequest,
        validate=_asked,
        answer=_create,
        answers=BatchAnswer,
        errors=(400, 401, 404, 413, 415, 429, 500, 503),
        examples={"chat": {"value": _EXAMPLE}},
    ),
    GetEndpoint(
        path="/v1/batches",
        tag="batches",
        summary="The batches of this key, the newest first",
        answer=_list,
        answers=BatchList,
        errors=(400, 401, 404),
        parameters=(
            parameter("after", "Id of the batch before the first.", type="string"),
            parameter("limit", "Of batches.", type="integer", minimum=1, maximum=_LIMIT, default=20),
        ),
    ),
    GetEndpoint(
        path="/v1/batches/{batch}",
        tag="batches",
        summary="One of the batches",
        answer=_one,
        answers=BatchAnswer,
        errors=(401, 404),
        parameters=(_ID,),
    ),
    ActionEndpoint(
        path="/v1/batches/{batch}/cancel",
        tag="batches",
        summary="Cancel a batch; what has ended of it is kept",
        answer=_cancel,
        answers=BatchAnswer,
        errors=(401, 404, 409),
        parameters=(_ID,),
    ),
)
