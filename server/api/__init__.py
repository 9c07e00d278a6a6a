"""The routes of the API; those that watch the server itself stand beside the application."""

from fastapi import APIRouter

from server.api import generate, models, tokens
from server.api.context import Services


def build_router(services: Services) -> APIRouter:
    """All routes that serve the model: `/v1/completions`, `/v1/chat/completions`, `/v1/models`, `/tokenize`, `/detokenize`."""
    router = APIRouter()
    router.include_router(generate.build_router(services))
    router.include_router(models.build_router(services))
    router.include_router(tokens.build_router(services))
    return router
