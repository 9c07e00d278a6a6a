"""`GET /v1/models` and `GET /v1/models/{model}`."""

from server.api.context import ServerContext
from server.api.endpoint import Call, GetEndpoint
from server.schema.answers import ModelCard, ModelList


def _card(name: str, context: ServerContext) -> ModelCard:
    info = context.engines.info
    return ModelCard(id=name, created=context.created, max_model_len=None if info is None else info.context)


async def _list(call: Call) -> ModelList:
    return ModelList(data=[_card(name, call.context) for name in call.context.names_for(call.tenant)])


async def _one(call: Call) -> ModelCard:
    return _card(call.context.model_name(call.request.path_params["model"], call.tenant), call.context)


LIST = GetEndpoint(
    path="/v1/models", tag="models", summary="The served names", answer=_list, answers=ModelList, errors=(401,)
)
ONE = GetEndpoint(
    path="/v1/models/{model:path}",
    tag="models",
    summary="One of the served names; it may hold slashes",
    answer=_one,
    answers=ModelCard,
    errors=(401, 404),
    parameters=[{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
)
