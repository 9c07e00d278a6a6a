"""Writes docs/api.md from the list of endpoints and their declarations: `python -m server.reference > docs/api.md`."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from configs.settings import Settings
from server.api.endpoint import Endpoint, PostEndpoint
from server.api.endpoints import ENDPOINTS
from server.body_room import FREE_BYTES, PATIENCE_SECONDS, ROOM_BYTES
from server.errors import ApiError, TooManyBodies
from server.schema.base import INT32_MAX, Body, Kinds, bodies_in
from server.schema.limits import LIMITS, OTHERWISE
from server.schema.openapi import body_schema
from server.schema.sampling import Sampling

HEADER = """# The API

<!-- Written by `python -m server.reference` from server/api, server/schema and server/errors.py; a test compares the two. -->"""

PROSE = """## Rules

- A body is one JSON object in UTF-8, `Content-Type: application/json` or none. Refused with a 400: a name given twice,
  NaN and Infinity, integers beyond 64 bits, lone surrogates, a NUL in a name, more than 64 levels of nesting. A NUL in a
  text is a character like others, where the tokenizer has a token for it, else a 400 that says so.
- A body may be compressed: `Content-Encoding` `gzip`, `deflate` or `zstd`. What it decodes to counts for `--max-body-bytes`.
  Another coding, type or charset is a 415.
- `null` counts as absent, except in JSON schemas. Types are strict: `"1"` and `1.0` are not integers.
- What a request says is honoured, or refused with a 4xx that names the field, the limit and the value. The refusal of an
  unknown field names the nearest known one; with `--unknown-fields ignore` it is dropped and the answer has a `Warning` header.
- `model` may be absent: one model is served. A name that is not served is a 404.
- Prompt and output must fit the context together, or the request is refused with both numbers. A text of more bytes than
  the context times the model's longest token is refused before it is tokenized, by /tokenize too, and /detokenize takes
  as many ids as the context.
- Without `max_tokens` a completion has at most 16 tokens, a chat answer as many as are left in the context; with
  `--default-max-tokens` both have at most that many. `--max-output-tokens` bounds every answer, and what may be asked for.
- An answer ends at every end token that any file of the model names: `eos_token_id` of `generation_config.json` and of
  `config.json`, the tokenizer's `eos_token`, the keys of a GGUF file, and the known spellings of the end of a turn or of a
  text (`<|im_end|>`, `<|eot_id|>`, `<|endoftext|>`, ...) that are control tokens of its vocabulary. The line "End tokens" at
  start-up lists them with what names each. `ignore_eos` and `min_tokens` concern all of them.
- `temperature` below 0.0001 is greedy, like 0.
- Without `seed` one is drawn for each choice. With it, choice 0 of each prompt uses it and the others use seeds derived
  from it, so the same request gives the same text each time.
- `use_beam_search` finds the texts that transformers' `generate(num_beams=...)` finds, by the same scores: log probability over
  number of tokens to the power `length_penalty`. `n` beams, or `best_of` and the `n` best of them; `usage` counts those that are
  answered. All texts come at the end, so `stream` is refused, as is what would change the distribution or is looked for in a text
  (`stop`; `stop_token_ids` are heeded). `logprobs`, `echo`, `min_tokens` and several prompts are served as ever.
- A message's text parts are joined as they are. Role `developer` is given to the chat template as `system`.
- A client that leaves ends its request, streamed or not, unless it asked for a stream that is `resumable`: docs/sse.md.
- When an engine dies or hangs while a request is open, another one, or the same one started anew, goes on with it: the answer
  comes later and is the same, `usage` included (`cached_tokens` are those of the engine that brought the first token).
  `engine_died` says that none did within `--replay-seconds`, `poison_request` that two engines died while they computed it.
- `/openapi.json` states what bodies are refused by, as far as a schema can: rules between fields and, once an engine is ready, what
  the model bounds. To JSON Schema, but not here, `1.0` is an integer.

## Answers

The stream is described in docs/sse.md; the answer without `stream` is the stream added up. A stream begins with its
first output, so a failure before that has a status of its own. After 10 seconds without output it begins with comments, and
a failure is then its last event. Beyond OpenAI's answer:

- `timings`: `queue_ms`, `prefill_ms`, `decode_ms`, `total_ms` and speeds of the choice that finished last.
- `stop_reason` of a choice: the stop string or the id from `stop_token_ids` that ended it, else null.
- `logprobs`, of the model's raw distribution, have one entry for each token, the end token included. A token that holds
  only part of a character is named by its bytes: `bytes:\\xf0\\x9f`. With `echo` the prompt's tokens come first, and the
  very first has null.
- `prompt_logprobs` of a choice: null, then for each further prompt token an object of token id to `logprob`, `rank`,
  `decoded_token`. `return_token_ids`: `prompt_token_ids` and `token_ids` of a choice.
- `usage.prompt_tokens_details.cached_tokens`: prompt tokens whose KV was reused. With several choices of one prompt, the
  prompt counts once."""


def page(endpoints: Sequence[Endpoint] = ENDPOINTS) -> str:
    """The whole page as Markdown."""
    bodies = dict(_bodies(endpoints))
    fields = [_fields(title, model) for model, title in _sections(bodies)]
    tables = [_ignored(bodies), _unsupported(bodies)]
    return "\n\n".join([HEADER, _routes(endpoints), PROSE, *fields, _limits(), *tables, _errors()]) + "\n"


def _routes(endpoints: Sequence[Endpoint]) -> str:
    rows = [
        f"| `{endpoint.method} {endpoint.shown_path}` | {endpoint.summary} | {'yes' if endpoint.needs_key else 'no'} |"
        for endpoint in endpoints
    ]
    rows.append("| `GET /openapi.json` | This API's schema | yes |")
    return "| endpoint | what it does | needs an API key |\n| --- | --- | --- |\n" + "\n".join(rows)


def _bodies(endpoints: Sequence[Endpoint]) -> Iterator[tuple[type[Body], str]]:
    """Every body with the place where it stands, then the objects inside them. One with several places has the first."""
    seen: set[type[Body]] = set()
    outer = [(endpoint.body, endpoint.path) for endpoint in endpoints if isinstance(endpoint, PostEndpoint)]
    inner = [pair for body, _ in outer for pair in _nested(body, "")]
    for model, path in [*outer, *inner]:
        if model not in seen:
            seen.add(model)
            yield model, path


def _nested(model: type[Body], prefix: str) -> Iterator[tuple[type[Body], str]]:
    for name, held in model.NESTED.items():
        annotation = model.model_fields[name].annotation
        for inner in bodies_in(held):
            one = inner in get_args(annotation) and get_origin(annotation) is not list  # `Inner | None`, not an array
            path = f"{prefix}{name}" if one else f"{prefix}{name}[]"
            kinds = (
                [f'"{kind}"' for kind, body in held.bodies.items() if body is inner] if isinstance(held, Kinds) else []
            )
            yield inner, f"`{path}`" + (f" of {held.field} {', '.join(kinds)}" if isinstance(held, Kinds) else "")
            yield from _nested(inner, f"{path}.")


def _sections(bodies: dict[type[Body], str]) -> Iterator[tuple[type[Body], str]]:
    """The bodies in order; the fields that all generating endpoints share get a section of their own."""
    if any(issubclass(model, Sampling) for model in bodies):
        yield Sampling, "Fields of every endpoint that generates"
    for model, place in bodies.items():
        yield model, f"Further fields of {place}" if issubclass(model, Sampling) else f"Fields of {place}"


def _fields(title: str, model: type[Body]) -> str:
    schema = body_schema(model, Settings.model_validate({}))
    shared = Sampling.model_fields if issubclass(model, Sampling) and model is not Sampling else {}
    names = [field.alias or name for name, field in model.model_fields.items() if name not in shared]
    rows = [_field(name, schema["properties"][name], name in schema.get("required", [])) for name in names]
    return f"## {title}\n\n| field | accepts | default | meaning |\n| --- | --- | --- | --- |\n" + "\n".join(rows)


def _field(name: str, field: dict[str, Any], required: bool) -> str:
    default = field.get("default")
    shown = "required" if required else "–" if default in (None, [], {}) else f"`{json.dumps(default)}`"
    return f"| `{name}` | {_accepts(field)} | {shown} | {field.get('description', '')} |"


def _accepts(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    branches = [branch for branch in schema.get("anyOf", []) if branch.get("type") != "null"]
    if branches:
        return " or ".join(_accepts(branch) for branch in branches)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind: str = schema.get("type", "any")
    if kind == "array":
        return f"array of {_accepts(schema['items'])}" + _size(schema, "minItems", "maxItems")
    if kind == "string":
        return kind + _size(schema, "minLength", "maxLength", " characters")
    return {"boolean": "true or false"}.get(kind, kind) + _range(schema)


def _size(schema: dict[str, Any], least: str, most: str, unit: str = "") -> str:
    if most in schema:
        return f" ({schema.get(least, 0)} to {schema[most]}{unit})"
    return f" (at least {schema[least]}{unit})" if least in schema else ""


def _range(schema: dict[str, Any]) -> str:
    least = schema.get("minimum", schema.get("exclusiveMinimum"))
    most = schema.get("maximum")
    most = None if most == INT32_MAX else most  # as good as no bound
    if least == -(2**63):
        return " of 64 bits"
    over = "over " if "exclusiveMinimum" in schema else ""
    if least is None or least == -(2**31):
        return " of 32 bits" if least is not None else ""
    return f", {over}{least:g} to {most:g}" if most is not None else f", at least {least:g}"


def _limits() -> str:
    rows = [
        f"| `{limit.field}` | {limit.of} | `--{limit.setting.replace('_', '-')}` | {_default(limit.setting)} |"
        for limit in (*LIMITS, *OTHERWISE.values())
    ]
    extra = (
        "Prompts times `n` may be at most the larger of `--max-prompts` and `--max-n`. A body may have "
        f"`--max-body-bytes` ({_default('max_body_bytes')}) bytes; more is a 413. Bodies that are not parsed yet may have "
        f"{ROOM_BYTES // 2**20} MiB in all, beside {FREE_BYTES // 1024} KiB each: beyond that one is read at a time, and the "
        f"others wait for {PATIENCE_SECONDS:g} s before they are answered 503 (`{TooManyBodies.code}`)."
    )
    table = "| field | what | knob | default |\n| --- | --- | --- | --- |\n" + "\n".join(rows)
    return f"## Limits an operator may set\n\n{table}\n\n{extra}"


def _default(setting: str) -> Any:
    default = Settings.model_fields[setting].default
    return "–" if default is None else default


def _ignored(bodies: dict[type[Body], str]) -> str:
    rows = [f"| {where} | {_names(model.IGNORED)} |" for model, where in bodies.items() if model.IGNORED]
    return (
        "## Accepted without effect\n\nThey cannot change the output; their values are not checked.\n\n"
        "| where | fields |\n| --- | --- |\n" + "\n".join(rows)
    )


def _unsupported(bodies: dict[type[Body], str]) -> str:
    rows = []
    for model, where in bodies.items():
        refused = ", ".join(f"`{name}`" for name, neutral in sorted(model.UNSUPPORTED.items()) if not neutral)
        if refused:
            rows.append(f"| {where} | {refused} | – |")
        for name, neutral in sorted(model.UNSUPPORTED.items()):
            if neutral:
                accepted = ", ".join(f"`{json.dumps(value)}`" for value in neutral)
                rows.append(f"| {where} | `{name}` | {accepted} |")
    return (
        "## Known, not served\n\nRefused with `unsupported_field`, except for the values that ask for nothing.\n\n"
        "| where | fields | accepted |\n| --- | --- | --- |\n" + "\n".join(rows)
    )


def _names(names: frozenset[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _errors() -> str:
    rows = "\n".join(
        f"| {error.status} | `{error.code}` | `{error.type}` | {' '.join((error.__doc__ or '').split())} |"
        for error in sorted(_leaves(ApiError), key=lambda error: (error.status, error.code))
    )
    return (
        '## Errors\n\nEvery error is `{"error": {"message", "type", "param", "code"}}`, all four always present; `param` is the '
        "path of the field, such as `messages[0].content`.\n\n"
        f"| status | code | type | cause |\n| --- | --- | --- | --- |\n{rows}"
    )


def _leaves(error: type[ApiError]) -> list[type[ApiError]]:
    """All errors except the base, whose code is that of `InternalError`."""
    return [child for direct in error.__subclasses__() for child in (direct, *_leaves(direct))]


if __name__ == "__main__":
    print(page(), end="")
