"""`GET /v1/models` and `GET /v1/models/{id}`."""

from fastapi import APIRouter, Request

from server.api.context import Services
from server.schema.answers import Model, ModelList, errors

_PATH = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}


def build_router(services: Services) -> APIRouter:
    """The two routes."""
    router = APIRouter(tags=["models"])

    def describe(name: str) -> Model:
        info = services.engine.info
        return Model(id=name, created=services.created, max_model_len=None if info is None else info.context)

    @router.get("/v1/models", summary="The served names", responses=errors(401))
    async def list_models() -> ModelList:
        return ModelList(data=[describe(name) for name in services.model_names])

    # The id may hold slashes. It is read by hand: a declared parameter would publish FastAPI's own 422.
    @router.get(
        "/v1/models/{model:path}",
        summary="One of the served names",
        responses=errors(401, 404),
        openapi_extra={"parameters": [_PATH]},
    )
    async def one_model(request: Request) -> Model:
        return describe(services.model_name(request.path_params["model"]))

    return router
