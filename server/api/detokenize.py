"""`POST /detokenize`: token ids to text."""

from starlette.responses import Response

from server.api.context import ServerContext
from server.api.endpoint import Call, PostEndpoint, json_response
from server.api.requests.validate import check_count, check_ids
from server.api.tenants import ANYBODY, Tenant
from server.schema.answers import DetokenizeAnswer
from server.schema.tokens import DetokenizeRequest


def detokenized(body: DetokenizeRequest, context: ServerContext, tenant: Tenant = ANYBODY) -> DetokenizeAnswer:
    """The text of ids.

    Raises:
        InvalidRequest, ContextExceeded, ModelNotFound, Unavailable: as for a completion.
    """
    context.model_name(body.model, tenant)
    check_count(body.tokens, context, "tokens")  # decoding millions of ids would hold up every stream
    check_ids(body.tokens, context, "tokens")
    return DetokenizeAnswer(prompt=context.tokenizer.decode(body.tokens, skip_special_tokens=body.skip_special_tokens))


async def _answer(answer: DetokenizeAnswer, call: Call) -> Response:
    return json_response(answer, call.headers)


ENDPOINT = PostEndpoint(
    path="/detokenize",
    tag="tokens",
    summary="Token ids to text",
    body=DetokenizeRequest,
    validate=detokenized,
    answer=_answer,
    answers=DetokenizeAnswer,
    errors=(400, 401, 404, 413, 415, 503),
    examples={"ids": {"value": {"tokens": [1, 2]}}},
)
