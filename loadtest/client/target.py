"""The server under test: what the user says about it, and what it says about itself when asked before the run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from loadtest.client.streams import whole_answer
from loadtest.client.vectors import vector_of
from loadtest.workload.vocabulary import (
    FileTokenizer,
    PromptTokenizer,
    PromptTokenizerError,
    ServerTokenizer,
    Vocabulary,
)
from loadtest.workload.words import OPENER

Endpoint = Literal["completions", "chat", "embeddings"]
_PATHS: Mapping[Endpoint, str] = {"completions": "completions", "chat": "chat/completions", "embeddings": "embeddings"}
# Servers known to honour `ignore_eos`, by what they say as `owned_by` in /v1/models.
_HONOURS_IGNORE_EOS = frozenset(("headrace", "vllm", "sglang", "llamacpp"))
_PROBE_WORDS = 8
_PROBE_TOKENS = 4


class TargetError(RuntimeError):
    """The target cannot be tested; the message says what it answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the user says about the target.

    Attributes:
        base_url: up to and including `/v1`, which may be left out where there is no other path.
        model: None for the first that the target lists.
        endpoint: `completions` (the prompt is the model's input, token for token) or `chat` (the template's tokens are added), or
            `embeddings` (a vector for each prompt).
        tokenizer: path of a `tokenizer.json`, for a target that cannot be asked.
        characters_per_token: for when there is neither; lengths are then estimates, and not held against the server.
        ignore_eos: whether to send it; None to send it if the target accepts it.
        token_ids_up_to: with prompts of at most this many tokens, ask for token ids, by which the tokens of a stream can be
            counted (the prompt's ids come back too); 0 to never ask.
        extra: further fields of every request.
    """

    base_url: str
    model: str | None = None
    api_key: str | None = None
    endpoint: Endpoint = "completions"
    tokenizer: str | None = None
    characters_per_token: float | None = None
    ignore_eos: bool | None = None
    token_ids_up_to: int = 1024
    temperature: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> str:
        """The URL under which `/metrics` and `/tokenize` are."""
        return self.base_url.rstrip("/").removesuffix("/v1")

    @property
    def api(self) -> str:
        """The URL of the API, `/v1` included."""
        url = self.base_url.rstrip("/")
        return url if urlsplit(url).path else f"{url}/v1"

    @property
    def url(self) -> str:
        """The URL that requests go to."""
        return f"{self.api}/{_PATHS[self.endpoint]}"

    def client(self) -> httpx.AsyncClient:
        """A client for the questions asked before and after the run."""
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return httpx.AsyncClient(headers=headers, timeout=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the target said about itself.

    Attributes:
        owner: its model's `owned_by`: `headrace`, `vllm`, ...
        context: its `max_model_len` in tokens; None if it does not say.
        ignore_eos, token_ids: whether these fields may be sent.
        limit_field: the name of the field that bounds the output.
    """

    model: str
    owner: str
    context: int | None
    vocabulary: Vocabulary
    tokenizer: PromptTokenizer | None
    ignore_eos: bool = False
    token_ids: bool = False
    limit_field: str = "max_tokens"

    @property
    def ends_only_by_length(self) -> bool:
        """Whether an answer that ends early is the server's fault."""
        return self.ignore_eos and self.owner in _HONOURS_IGNORE_EOS

    @property
    def own_grammar(self) -> bool:
        """Whether its streams must follow docs/sse.md to the letter."""
        return self.owner == "headrace"


def request_body(
    target: Target, known: Known, text: str, output_tokens: int, *, stream: bool = True, ids: bool = False
) -> dict[str, Any]:
    """The body of a request with prompt `text` and at most `output_tokens` of answer. `ids`: ask for token ids. Of an embedding
    only the prompt counts."""
    body: dict[str, Any] = {"model": known.model}
    if target.endpoint == "embeddings":
        return body | {"input": text} | dict(target.extra)
    if target.endpoint == "chat":
        body["messages"] = [{"role": "user", "content": text}]
    else:
        body["prompt"] = text
    body |= {known.limit_field: output_tokens, "temperature": target.temperature}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if known.ignore_eos:
        body["ignore_eos"] = True
    if ids:
        body["return_token_ids"] = True
    return body | dict(target.extra)


async def meet(target: Target, client: httpx.AsyncClient) -> Known:
    """Ask the target for its model, its tokenizer and which fields it accepts. Sends one or a few tiny requests.

    Raises:
        TargetError: it cannot be reached, has no such model, or refuses the plainest request.
        PromptTokenizerError: neither the target nor the file gives token counts.
    """
    model, owner, context = await _model(target, client)
    tokenizer, vocabulary = await _vocabulary(target, client, model)
    known = Known(model=model, owner=owner, context=context, vocabulary=vocabulary, tokenizer=tokenizer)
    return await _probed(target, client, known)


async def _model(target: Target, client: httpx.AsyncClient) -> tuple[str, str, int | None]:
    url = f"{target.api}/models"
    try:
        answer = await client.get(url)
        listed = {entry["id"]: entry for entry in answer.json()["data"]}
    except httpx.HTTPError as error:
        raise TargetError(f"{url} cannot be reached: {error or type(error).__name__}") from None
    except (ValueError, KeyError, TypeError):
        raise TargetError(f"{url} lists no models: status {answer.status_code}, {answer.text[:100]}") from None
    name = next(iter(listed), None) if target.model is None else target.model
    if name not in listed:
        raise TargetError(f"no model {target.model!r} there; it has {', '.join(map(str, listed)) or 'none'}")
    entry = listed[name]
    context = entry.get("max_model_len")
    told = isinstance(context, int) and not isinstance(context, bool) and context > 0
    return str(name), str(entry.get("owned_by") or "unknown"), context if told else None


async def _vocabulary(
    target: Target, client: httpx.AsyncClient, model: str
) -> tuple[PromptTokenizer | None, Vocabulary]:
    if target.characters_per_token is not None:
        return None, Vocabulary.estimated(target.characters_per_token)
    tokenizer: PromptTokenizer
    if target.tokenizer is not None:
        tokenizer = FileTokenizer(target.tokenizer)
    else:
        tokenizer = ServerTokenizer(client, f"{target.root}/tokenize", model)
    return tokenizer, await Vocabulary.measured(tokenizer)


async def _probed(target: Target, client: httpx.AsyncClient, known: Known) -> Known:
    """Drop the fields that the target refuses, trying the most first; then measure what its template adds."""
    want_eos, want_ids = target.ignore_eos is not False, target.token_ids_up_to > 0
    tries = [
        replace(known, ignore_eos=eos, token_ids=ids, limit_field=limit)
        for limit in ("max_tokens", "max_completion_tokens")
        for eos, ids in dict.fromkeys([(want_eos, want_ids), (want_eos, False), (False, False)])
    ]
    text = OPENER + "".join(word for word, _ in known.vocabulary.words[:_PROBE_WORDS])
    for attempt in tries:
        body = request_body(target, attempt, text, _PROBE_TOKENS, stream=False, ids=attempt.token_ids)
        try:
            answer = await client.post(target.url, json=body)
        except httpx.HTTPError as error:
            raise TargetError(f"{target.url}: {error or type(error).__name__}") from None
        if answer.status_code == 200:
            return _learned(target, attempt, answer)
        if answer.status_code not in (400, 422):
            break
    raise TargetError(
        f"{target.url} refuses {json.dumps(body)[:200]}: status {answer.status_code}, {answer.text[:200]}"
    )


def _learned(target: Target, known: Known, answer: httpx.Response) -> Known:
    """Whether it really returns ids, and how many tokens a prompt has besides its words."""
    if target.ignore_eos and not known.ignore_eos:
        raise TargetError("the target refuses ignore_eos, which was asked for")
    try:
        usage, told = _answered(target, answer.json())
    except ValueError as error:
        raise TargetError(f"{target.url} gives no answer as OpenAI does: {error}: {answer.text[:200]}") from None
    vocabulary = known.vocabulary
    prompt = usage.get("prompt_tokens")
    from_server = target.tokenizer is None and target.endpoint == "completions"
    if isinstance(prompt, int) and vocabulary.exact and not from_server:
        words = sum(count for _, count in vocabulary.words[:_PROBE_WORDS])
        if prompt <= words:
            raise PromptTokenizerError(
                f"a prompt of {words} tokens counts {prompt} there: {target.tokenizer or 'its /tokenize'} is another model's"
            )
        vocabulary = replace(vocabulary, base=prompt - words)
    return replace(known, token_ids=known.token_ids and told, vocabulary=vocabulary)


def _answered(target: Target, body: Any) -> tuple[dict[str, Any], bool]:
    """The usage of an answer, and whether it has token ids. Raises ValueError if it is no answer of the endpoint."""
    if target.endpoint == "embeddings":
        if vector_of(body) is None:
            raise ValueError("it has no vector")
        usage = body.get("usage")
        return usage if isinstance(usage, dict) else {}, False
    whole = whole_answer(body)
    return whole.usage or {}, "token_ids" in body["choices"][0]
