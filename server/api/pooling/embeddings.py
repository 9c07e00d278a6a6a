"""`POST /v1/embeddings`: texts or token ids in, a vector of each out."""

import base64
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.types.output_kind import OutputKind, Pooled
from server.api.answers.answer import ERRORS, pooled_answer
from server.api.context import ServerContext
from server.api.endpoint import PostEndpoint
from server.api.pooling.inputs import Cutting, Named, model_inputs, new_id, params_of, sequences_of
from server.api.requests.tasks import check_task
from server.api.tenants import ANYBODY, Tenant
from server.errors import InvalidRequest
from server.schema.pooling.bodies import EmbeddingAnswer, EmbeddingRequest
from server.schema.shown import shown
from server.stream.job import Job
from server.text.input_types import input_types, prompt_for


@dataclass(slots=True, kw_only=True)
class EmbeddingJob(Job):
    """A job of vectors.

    Attributes:
        encoding_format: `float` or `base64`.
        dimensions: how many numbers of each vector; None: all.
        normalize: whether a vector that was cut gets length 1 again.
    """

    encoding_format: str
    dimensions: int | None
    normalize: bool


def embedding_job(body: EmbeddingRequest, context: ServerContext, tenant: Tenant = ANYBODY) -> EmbeddingJob:
    """The job of an embeddings request.

    Raises:
        InvalidRequest, ContextExceeded, UnsupportedField, ModelNotFound, TaskNotServed: what is wrong, with limit and value.
        Unavailable: no engine was ever ready.
    """
    model = context.model_name(body.model, tenant)
    kind = check_task(context, OutputKind.VECTOR)
    _check_dimensions(body.dimensions, context.info().vector_size)
    prompt = _prompt_of(body, context)
    params = params_of("input", len(body.input))
    named = [
        Named(prompt + given if isinstance(given, str) else given, param)
        for given, param in zip(body.input, params, strict=True)
    ]
    inputs = model_inputs(named, Cutting.of(body, context), context, add_special_tokens=body.add_special_tokens)
    job_id, created = new_id("embd-")
    return EmbeddingJob(
        id=job_id,
        created=created,
        model=model,
        sequences=sequences_of(
            job_id, zip(named, inputs, strict=True), kind, body=body, tenant=tenant, context=context
        ),
        encoding_format=body.encoding_format,
        dimensions=body.dimensions,
        normalize=context.pooling.normalize,
    )


def _prompt_of(body: EmbeddingRequest, context: ServerContext) -> str:
    if body.input_type is not None and body.prompt_name is not None:
        raise InvalidRequest("`input_type` and `prompt_name` exclude each other, got both", param="input_type")
    rules = context.pooling
    for field, name, known in (
        ("input_type", body.input_type, input_types(rules)),
        ("prompt_name", body.prompt_name, sorted(rules.prompts)),
    ):
        if name is not None and name not in known:
            names = ", ".join(f"`{each}`" for each in known) or "none, as the model has no prompts"
            raise InvalidRequest(f"`{field}` must be one of {names}, got {shown(name)}", param=field)
    return prompt_for(rules, input_type=body.input_type, prompt_name=body.prompt_name)


def _check_dimensions(asked: int | None, size: int) -> None:
    if asked is not None and asked > size:
        raise InvalidRequest(
            f"`dimensions` must be at most {size}, those of the model's vectors, got {asked}", param="dimensions"
        )


def _written(job: Job, results: Sequence[Pooled]) -> bytes:
    """The answer's JSON, vector by vector: in one piece, a large one would hold the interpreter's lock too long."""
    assert isinstance(job, EmbeddingJob)
    tokens = sum(len(sequence.prompt.ids) for sequence in job.sequences)
    items = [
        f'{{"object":"embedding","index":{index},"embedding":{_spelled(shortened(result.values, job), job.encoding_format)}}}'
        for index, result in enumerate(results)
    ]
    head = f'"id":"{job.id}","created":{job.created},"model":{json.dumps(job.model)}'
    usage = f'"usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}'
    return f'{{"object":"list",{head},"data":[{",".join(items)}],{usage}}}'.encode()


def shortened(values: list[float], job: EmbeddingJob) -> list[float]:
    """The first numbers of a vector, as many as were asked for, at length 1 again if the model's vectors have that (Kusupati et al.
    2022, arXiv 2205.13147)."""
    if job.dimensions is None:
        return values
    kept = values[: job.dimensions]
    length = math.hypot(*kept) if job.normalize else 1.0
    return [value / length for value in kept] if length else kept


def _spelled(values: list[float], encoding_format: str) -> str:
    if encoding_format == "float":
        return json.dumps(values)
    return f'"{base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()}"'


ENDPOINT = PostEndpoint(
    path="/v1/embeddings",
    tag="vectors and scores",
    summary="Vectors of texts",
    operation="embeddings",
    body=EmbeddingRequest,
    validate=embedding_job,
    answer=pooled_answer(_written),
    answers=EmbeddingAnswer,
    errors=ERRORS,
    examples={"texts": {"value": {"input": ["The cat sat on the mat.", "Where is the dog?"]}}},
)
