"""The ASGI application: middleware, error handlers, routes. Assembled here and nowhere else."""

import math

from fastapi import FastAPI
from starlette.middleware import Middleware

from server.api import build_router, health
from server.api.context import Services
from server.api.tenants import callers_of
from server.drain import Drain
from server.engines.client import EngineClient
from server.errors import ErrorBoundary, install_handlers
from server.middleware import AuthMiddleware, BodySizeMiddleware, DrainMiddleware, ExchangeMiddleware
from server.telemetry.metrics import Metrics, server_version


def create_app(services: Services, engine: EngineClient, metrics: Metrics, drain: Drain) -> FastAPI:
    """The application over parts that are made and run by the caller.

    The engine's supervisor and the web server are not started here. Routes find the request's `Exchange` at
    `request.state.exchange`.
    """
    settings = services.settings
    app = FastAPI(
        title="headrace",
        version=server_version(),
        description="OpenAI-compatible LLM serving.",
        docs_url=None,  # these pages load scripts from elsewhere; /openapi.json is for the reader's own tools
        redoc_url=None,
        redirect_slashes=False,
        middleware=[  # outermost first
            Middleware(ExchangeMiddleware, metrics=metrics, access_log=settings.access_log),
            Middleware(AuthMiddleware, callers=callers_of(settings)),
            Middleware(DrainMiddleware, drain=drain, retry_after=max(1, math.ceil(settings.drain_seconds))),
            Middleware(BodySizeMiddleware, limit=settings.max_body_bytes),
            Middleware(ErrorBoundary),
        ],
    )
    install_handlers(app)
    app.include_router(health.router(engine, health.Health(engine, settings.health_seconds), drain, metrics))
    app.include_router(build_router(services))
    return app
