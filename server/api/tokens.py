"""`POST /tokenize` and `POST /detokenize`."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.body import handle
from server.api.context import Services
from server.api.validate import check_count, check_ids, render, text_ids
from server.schema.answers import DetokenizeAnswer, TokenizeAnswer, errors
from server.schema.openapi import request_body
from server.schema.tokens import DetokenizeRequest, TokenizeRequest

_ERRORS = errors(400, 401, 404, 413, 503)
_TOKENIZE_EXAMPLES = {"text": {"value": {"prompt": "Hello"}}}
_DETOKENIZE_EXAMPLES = {"ids": {"value": {"tokens": [1, 2]}}}


def tokenized(body: TokenizeRequest, services: Services) -> TokenizeAnswer:
    """The ids of a text or of a conversation.

    Raises:
        InvalidRequest, ContextExceeded, ModelNotFound, Unavailable: as for a completion.
    """
    services.model_name(body.model)
    if body.messages is None:
        assert body.prompt is not None, "checked by TokenizeRequest"
        text, special, param = body.prompt, True, "prompt"
    else:
        kwargs = body.chat_template_kwargs
        text = render(body.messages, body.add_generation_prompt, body.continue_final_message, kwargs, services)
        special, param = False, "messages"
    if body.add_special_tokens is not None:
        special = body.add_special_tokens
    ids = text_ids(text, special, services, param)
    return TokenizeAnswer(
        tokens=ids,
        count=len(ids),
        max_model_len=services.info().context,
        token_strs=[services.tokenizer.token_text(token) for token in ids] if body.return_token_strs else None,
    )


def detokenized(body: DetokenizeRequest, services: Services) -> DetokenizeAnswer:
    """The text of ids. Raises as `tokenized`."""
    services.model_name(body.model)
    check_count(body.tokens, services, "tokens")  # decoding millions of ids would hold up every stream
    check_ids(body.tokens, services, "tokens")
    return DetokenizeAnswer(prompt=services.tokenizer.decode(body.tokens, skip_special_tokens=body.skip_special_tokens))


def build_router(services: Services) -> APIRouter:
    """The two routes."""
    router = APIRouter(tags=["tokens"])

    @router.post(
        "/tokenize",
        summary="Text to token ids",
        responses={**_ERRORS, 200: {"model": TokenizeAnswer}},
        openapi_extra=request_body(TokenizeRequest, services.settings, _TOKENIZE_EXAMPLES),
    )
    async def tokenize(request: Request) -> Response:
        answer, parsed = await handle(request, services, TokenizeRequest, tokenized)
        content = answer.model_dump_json(exclude_none=True)
        return Response(content, media_type="application/json", headers=parsed.headers)

    @router.post(
        "/detokenize",
        summary="Token ids to text",
        responses={**_ERRORS, 200: {"model": DetokenizeAnswer}},
        openapi_extra=request_body(DetokenizeRequest, services.settings, _DETOKENIZE_EXAMPLES),
    )
    async def detokenize(request: Request) -> Response:
        answer, parsed = await handle(request, services, DetokenizeRequest, detokenized)
        return Response(answer.model_dump_json(), media_type="application/json", headers=parsed.headers)

    return router
