"""`POST /v1/rerank` and `POST /v1/score`: how well texts go together, by a cross-encoder, or by the cosine of their vectors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import mul

from scheduler.types.output_kind import OutputKind, Pooled
from server.api.answers.answer import ERRORS, pooled_answer
from server.api.context import ServerContext
from server.api.endpoint import PostEndpoint
from server.api.pooling.inputs import Cutting, Named, model_inputs, new_id, params_of, sequences_of
from server.api.requests.tasks import check_task
from server.api.tenants import ANYBODY, Tenant
from server.errors import InvalidRequest
from server.schema.pooling.bodies import (
    PooledBody,
    PooledUsage,
    Ranked,
    RankedText,
    RerankAnswer,
    RerankRequest,
    Score,
    ScoreAnswer,
    ScoreRequest,
)
from server.stream.job import Job
from server.text.input_types import DOCUMENT, QUERY, prompt_for, role_prompt


@dataclass(slots=True, kw_only=True)
class PairJob(Job):
    """A job of scores.

    Attributes:
        pairs: the places of the two vectors of each pair among the job's sequences; None: each sequence is a pair.
    """

    pairs: list[tuple[int, int]] | None


@dataclass(slots=True, kw_only=True)
class RerankJob(PairJob):
    """One that orders documents.

    Attributes:
        documents: their texts, where the answer shall hold them.
        top_n: how many of them it names.
    """

    documents: list[str] | None
    top_n: int


def rerank_job(body: RerankRequest, context: ServerContext, tenant: Tenant = ANYBODY) -> RerankJob:
    """The job of a rerank request.

    Raises:
        InvalidRequest, ContextExceeded, UnsupportedField, ModelNotFound, TaskNotServed: what is wrong, with limit and value.
        Unavailable: no engine was ever ready.
    """
    documents, rules = body.documents, context.pooling
    named = [Named(text, param) for text, param in zip(documents, params_of("documents", len(documents)), strict=True)]
    prompts = role_prompt(rules, QUERY), role_prompt(rules, DOCUMENT)
    job = _pair_job("rerank-", [Named(body.query, "query")], named, prompts, body=body, tenant=tenant, context=context)
    return RerankJob(
        id=job.id,
        created=job.created,
        model=job.model,
        sequences=job.sequences,
        pairs=job.pairs,
        documents=documents if body.return_documents else None,
        top_n=len(documents) if body.top_n is None else body.top_n,
    )


def score_job(body: ScoreRequest, context: ServerContext, tenant: Tenant = ANYBODY) -> PairJob:
    """The job of a score request; raises what `rerank_job` does."""
    first, second = len(body.text_1), len(body.text_2)
    if first not in (1, second):
        raise InvalidRequest(
            f"`text_1` must have 1 entry or as many as `text_2`, {second}, got {first}", param="text_1"
        )
    sides = [
        [Named(text, param) for text, param in zip(texts, params_of(field, len(texts)), strict=True)]
        for field, texts in (("text_1", body.text_1), ("text_2", body.text_2))
    ]
    prompt = prompt_for(context.pooling)
    return _pair_job("score-", sides[0], sides[1], (prompt, prompt), body=body, tenant=tenant, context=context)


def _pair_job(
    prefix: str,
    first: Sequence[Named],
    second: Sequence[Named],
    prompts: tuple[str, str],
    *,
    body: PooledBody,
    tenant: Tenant,
    context: ServerContext,
) -> PairJob:
    """Each of `second` with the one of `first` that stands beside it, or with its only one.

    By a cross-encoder a pair is one sequence. By similarity each text is, those of `first` before those of `second`.
    """
    model = context.model_name(body.model, tenant)
    kind = check_task(context, OutputKind.SCORES, OutputKind.VECTOR)
    partner = [0] * len(second) if len(first) == 1 else list(range(len(second)))
    if kind is OutputKind.SCORES:
        texts = [
            Named((str(first[mine].given), str(each.given)), each.param)
            for mine, each in zip(partner, second, strict=True)
        ]
        pairs = None
    else:
        texts = [
            replace(each, given=f"{prompt}{each.given}")
            for side, prompt in zip((first, second), prompts, strict=True)
            for each in side
        ]
        pairs = [(mine, len(first) + index) for index, mine in enumerate(partner)]
    inputs = model_inputs(texts, Cutting.of(body, context), context)
    job_id, created = new_id(prefix)
    sequences = sequences_of(job_id, zip(texts, inputs, strict=True), kind, body=body, tenant=tenant, context=context)
    return PairJob(id=job_id, created=created, model=model, sequences=sequences, pairs=pairs)


def _scores(job: PairJob, results: Sequence[Pooled]) -> list[float]:
    if job.pairs is None:
        return [result.values[0] for result in results]
    return [cosine(results[first].values, results[second].values) for first, second in job.pairs]


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """The cosine of the angle between two vectors; 0 if one has no direction."""
    lengths = math.hypot(*first) * math.hypot(*second)
    return math.fsum(map(mul, first, second)) / lengths if lengths else 0.0


def _usage(job: Job) -> PooledUsage:
    tokens = sum(len(sequence.prompt.ids) for sequence in job.sequences)
    return PooledUsage(prompt_tokens=tokens, total_tokens=tokens)


def _reranked(job: Job, results: Sequence[Pooled]) -> RerankAnswer:
    assert isinstance(job, RerankJob)
    scores = _scores(job, results)
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[: job.top_n]
    texts = job.documents
    ranked = [
        Ranked(
            index=index,
            relevance_score=scores[index],
            document=None if texts is None else RankedText(text=texts[index]),
        )
        for index in order
    ]
    return RerankAnswer(id=job.id, created=job.created, model=job.model, usage=_usage(job), results=ranked)


def _scored(job: Job, results: Sequence[Pooled]) -> ScoreAnswer:
    assert isinstance(job, PairJob)
    data = [Score(index=index, score=score) for index, score in enumerate(_scores(job, results))]
    return ScoreAnswer(id=job.id, created=job.created, model=job.model, usage=_usage(job), data=data)


_QUESTION = {"query": "Where is the cat?", "documents": ["The dog is out.", "The cat sat on the mat."], "top_n": 1}
RERANK = PostEndpoint(
    path="/v1/rerank",
    tag="vectors and scores",
    summary="Documents in the order in which they answer a query",
    body=RerankRequest,
    validate=rerank_job,
    answer=pooled_answer(_reranked),
    answers=RerankAnswer,
    errors=ERRORS,
    examples={"best": {"value": _QUESTION}},
)
SCORE = PostEndpoint(
    path="/v1/score",
    tag="vectors and scores",
    summary="How well pairs of texts go together",
    body=ScoreRequest,
    validate=score_job,
    answer=pooled_answer(_scored),
    answers=ScoreAnswer,
    errors=ERRORS,
    examples={"one with two": {"value": {"text_1": "a cat", "text_2": ["a cat", "a dog"]}}},
)
# Other servers' paths, which their clients ask.
ENDPOINTS = (
    RERANK,
    replace(RERANK, path="/rerank", summary="The same under Jina's path"),
    replace(RERANK, path="/v2/rerank", summary="The same under Cohere's path"),
    SCORE,
    replace(SCORE, path="/score", summary="The same under a shorter path"),
)
