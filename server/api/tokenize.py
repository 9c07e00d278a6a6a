"""`POST /tokenize`: a text or a conversation to token ids."""

from starlette.responses import Response

from server.api.chat import render, renderer_of
from server.api.context import ServerContext
from server.api.endpoint import Call, PostEndpoint
from server.api.requests.tools import ToolUse
from server.api.requests.validate import text_ids
from server.api.tenants import ANYBODY, Tenant
from server.schema.answers import TokenizeAnswer
from server.schema.tokens import TokenizeRequest
from server.text.chat_renderer import Encode


def tokenized(body: TokenizeRequest, context: ServerContext, tenant: Tenant = ANYBODY) -> TokenizeAnswer:
    """The ids of a text or of a conversation.

    Raises:
        InvalidRequest, ContextExceeded, ModelNotFound, Unavailable: as for a completion.
    """
    context.model_name(body.model, tenant)
    encode: Encode = context.tokenizer.encode
    if body.messages is None:
        assert body.prompt is not None, "checked by TokenizeRequest"
        text, special, param = body.prompt, True, "prompt"
    else:
        chat = renderer_of(context)
        kwargs = body.chat_template_kwargs
        use = ToolUse([tool.function for tool in body.tools])
        text = render(chat, body.messages, body.add_generation_prompt, body.continue_final_message, kwargs, use=use)
        special, param, encode = False, "messages", chat.encode
    if body.add_special_tokens is not None:
        special = body.add_special_tokens
    ids = text_ids(text, special, context, param, encode)
    return TokenizeAnswer(
        tokens=ids,
        count=len(ids),
        max_model_len=context.info().context,
        token_strs=[context.tokenizer.token_text(token) for token in ids] if body.return_token_strs else None,
    )


async def _answer(answer: TokenizeAnswer, call: Call) -> Response:
    content = answer.model_dump_json(exclude_none=True)  # `token_strs` is there only where it was asked for
    return Response(content, media_type="application/json", headers=call.headers)


ENDPOINT = PostEndpoint(
    path="/tokenize",
    tag="tokens",
    summary="Text to token ids",
    body=TokenizeRequest,
    validate=tokenized,
    answer=_answer,
    answers=TokenizeAnswer,
    errors=(400, 401, 404, 413, 415, 503),
    examples={"text": {"value": {"prompt": "Hello"}}},
)
