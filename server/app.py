"""The ASGI application: middleware, error handlers, endpoints. Assembled here and nowhere else."""

import math
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from configs.settings import Settings
from server.api.context import ServerContext
from server.api.endpoint import Endpoint, EndpointTable
from server.api.endpoints import ENDPOINTS
from server.api.tenants import KeyRing
from server.errors import install_handlers
from server.keys.allowance import RATE_HEADERS
from server.middleware import (
    AuthMiddleware,
    BodySizeMiddleware,
    DrainMiddleware,
    ErrorBoundary,
    ExchangeMiddleware,
    HeadMiddleware,
    LimitMiddleware,
)
from server.origin import OriginMiddleware
from server.schema.answers import components
from server.schema.openapi import ModelBounds
from server.stream.resumable_answer import STREAM_ID
from server.telemetry.metrics import server_version


class Application(FastAPI):
    """FastAPI's, whose document is made of what the endpoints say of themselves: with the model's bounds, once they are known.

    Its routes are Starlette's (`Endpoint.route`); FastAPI's are made for the document alone, when somebody asks for it.
    """

    def __init__(self, context: ServerContext, endpoints: Sequence[Endpoint], **options: Any) -> None:
        super().__init__(**options)
        self._context = context
        self._endpoints = endpoints
        self._bounds: ModelBounds | None = None

    def openapi(self) -> dict[str, Any]:
        """The document. It is made again when the bounds change."""
        bounds = self._context.bounds()
        if self.openapi_schema is None or bounds != self._bounds:
            described = APIRouter()
            for endpoint in self._endpoints:
                endpoint.describe_in(described)
            document = get_openapi(
                title=self.title, version=self.version, description=self.description, routes=described.routes
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for endpoint in self._endpoints:
                schemas.update(components(endpoint.error_answer))
                operation = document["paths"][endpoint.shown_path][endpoint.method.lower()]
                operation.update(endpoint.openapi(self._context.settings, bounds))
            self.openapi_schema, self._bounds = document, bounds
        return self.openapi_schema


def create_app(context: ServerContext, endpoints: Sequence[Endpoint] = ENDPOINTS) -> FastAPI:
    """The application on top of parts that the caller makes and runs.

    The engines' supervisors and the web server are not started here. Endpoints find the request's `Exchange` at
    `request.state.exchange` and its `Tenant` at `request.state.tenant`.
    """
    settings, table = context.settings, EndpointTable(endpoints)
    is_probe = table.where(lambda endpoint: endpoint.probe)
    app = Application(
        context,
        endpoints,
        title="headrace",
        version=server_version(),
        description="OpenAI-compatible LLM serving.",
        docs_url=None,  # these pages load scripts from elsewhere; /openapi.json is for the reader's own tools
        redoc_url=None,
        redirect_slashes=False,
        middleware=[  # outermost first
            Middleware(
                ExchangeMiddleware,
                metrics=context.metrics,
                access_log=settings.access_log,
                is_probe=is_probe,
                operation_of=table.operation_of,
                error_body_of=table.error_body_of,
                tracing=context.tracing,
            ),
            Middleware(OriginMiddleware, settings=settings, under_any_name=is_probe),
            *_cors(settings),
            Middleware(HeadMiddleware),
            Middleware(
                AuthMiddleware,
                keys=context.keys or KeyRing(settings),
                without_key=table.where(lambda endpoint: not endpoint.needs_key),
            ),
            *([] if context.accounts is None else [Middleware(LimitMiddleware, accounts=context.accounts)]),
            Middleware(
                DrainMiddleware,
                drain=context.drain,
                retry_after=max(1, math.ceil(settings.drain_seconds)),
                always=table.where(lambda endpoint: endpoint.while_draining),
            ),
            Middleware(BodySizeMiddleware, limit_of=lambda scope: table.body_limit_of(scope, settings)),
            Middleware(ErrorBoundary),
        ],
    )
    install_handlers(app)
    app.router.routes.extend(endpoint.route(context) for endpoint in endpoints)
    return app


def _cors(settings: Settings) -> list[Middleware]:
    """What lets pages of the allowed origins ask, and read what they are answered."""
    if not settings.cors_origins:
        return []
    origins = [origin.lower().rstrip("/") for origin in settings.cors_origins]
    methods = ["GET", "HEAD", "POST", "DELETE"]
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=methods,
            allow_headers=["*"],
            allow_private_network=True,  # a page of the Internet asks a browser's permission to reach a server at home
            expose_headers=[STREAM_ID, "X-Request-Id", "Retry-After", "Warning", *RATE_HEADERS],
        )
    ]
