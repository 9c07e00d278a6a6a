"""The list of endpoints. What is served, guarded, drained, published and documented follows from it."""

from server.api import (
    black_box,
    chat,
    completions,
    detokenize,
    engine_blocks,
    engines,
    health,
    live_map,
    models,
    pages,
    streams,
    tokenize,
)
from server.api.accounts import usage
from server.api.batches import batches, files
from server.api.dialects import messages, responses, stored_responses
from server.api.endpoint import Endpoint
from server.api.pooling import embeddings, scores

ENDPOINTS: tuple[Endpoint, ...] = (
    completions.ENDPOINT,
    chat.ENDPOINT,
    responses.ENDPOINT,
    responses.COUNT,
    *stored_responses.ENDPOINTS,
    *messages.ENDPOINTS,
    embeddings.ENDPOINT,
    *scores.ENDPOINTS,
    *streams.ENDPOINTS,
    *files.ENDPOINTS,
    *batches.ENDPOINTS,
    black_box.ENDPOINT,
    models.LIST,
    models.ONE,
    tokenize.ENDPOINT,
    detokenize.ENDPOINT,
    *engines.ENDPOINTS,
    engine_blocks.ENDPOINT,
    live_map.ENDPOINT,
    usage.ENDPOINT,
    *health.ENDPOINTS,
    pages.INDEX,
    pages.MAP,
)
