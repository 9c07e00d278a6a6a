"""The knobs of the HTTP side, declared as the others are (`configs/declaration.py`)."""

from typing import Literal

from pydantic import Field

from configs.declaration import HTTP, SECRET, Declaration, PositiveInt, Text


class HttpDeclaration(Declaration):
    """These, after the others."""

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. `localhost`: both loopback addresses; `0.0.0.0`: all of IPv4; `::`: all, IPv4 too.",
        json_schema_extra=HTTP,
    )
    port: int = Field(
        8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.", json_schema_extra=HTTP
    )
    uds: Text | None = Field(
        None,
        description="A Unix socket to listen on instead of host and port. What a server that is no more has left there is "
        "replaced.",
        # An empty variable in a script would otherwise open a port to everybody who reaches it.
        json_schema_extra=HTTP | {"never_empty": True},
    )
    uds_access: Literal["user", "group", "all"] = Field(
        "group",
        description="Who may connect to the Unix socket: the server's user, also its group, or all users of the machine.",
        json_schema_extra=HTTP,
    )
    tls_cert: Text | None = Field(
        None,
        description="A PEM file with the server's certificate and those that lead to its root; with it TLS is spoken, and nothing "
        "else. Taken up anew when it changes; open connections stay.",
        json_schema_extra=HTTP,
    )
    tls_key: Text | None = Field(
        None,
        description="A PEM file with the private key, not encrypted; if absent the key is in tls_cert.",
        json_schema_extra=HTTP,
    )
    root_path: str = Field(
        "",
        description="Path under which a proxy serves this server, as in `/llm`; the proxy may strip it or not.",
        json_schema_extra=HTTP,
    )
    forwarded_allow_ips: list[Text] = Field(
        default_factory=list,
        description="Addresses or networks of proxies, beside this machine itself, whose X-Forwarded-For and X-Forwarded-Proto are "
        "believed; `*` = all.",
        json_schema_extra=HTTP,
    )
    api_key: list[Text] = Field(
        default_factory=list,
        description="Keys that clients must send as a bearer token; none = open.",
        json_schema_extra=HTTP | SECRET,
    )
    key_names: list[Text] = Field(
        default_factory=list,
        description="Names of the tenants for the keys of api_key, in the same order; keys with the same name are one tenant. "
        "`key1`, `key2`, ... if empty.",
        json_schema_extra=HTTP,
    )
    admin_keys: list[Text] = Field(
        default_factory=list,
        description="API keys, by their names in key_names, that may do what is the operator's: watch, drain and restart engines, "
        "and see the use of all keys. Beside them those with `admin: true` in the file of api_keys; where there are keys and none "
        "of these, nobody may.",
        json_schema_extra=HTTP,
    )
    api_keys: Text | None = Field(
        None,
        description="A YAML file of API keys, by their hashes: each with tenant, weight, limits, models, rights, an end. Taken up "
        "anew when it changes, and on SIGHUP; `headrace keys` writes it. Keys of api_key hold beside it. See keys.md.",
        json_schema_extra=HTTP,
    )
    usage_db: Text | None = Field(
        None,
        description="An SQLite file for what each key uses, by model and hour, as `GET /v1/usage` tells it. If absent and with "
        "api_keys, it is kept in memory until the server ends.",
        json_schema_extra=HTTP,
    )
    isolate_keys: bool = Field(
        False,
        description="Requests with different keys share no cached prefixes: each key adds a salt of its own.",
        json_schema_extra=HTTP,
    )
    unknown_fields: Literal["refuse", "ignore"] = Field(
        "refuse",
        description="Unknown request fields: answer 400, or ignore them with a warning header.",
        json_schema_extra=HTTP,
    )
    allowed_hosts: list[Text] = Field(
        default_factory=list,
        description="Names that clients may use for this server in the Host header, beside those of loopback; `*` = any. Without "
        "keys on a loopback address, and wherever names are given, all others are refused (DNS rebinding), except by the probes "
        "/live, /ready and /health.",
        json_schema_extra=HTTP,
    )
    cors_origins: list[Text] = Field(
        default_factory=list,
        description="Origins (`https://chat.example`) whose web pages may use this server, beside its own; `*` = all. Requests of "
        "any other page are refused.",
        json_schema_extra=HTTP,
    )
    max_connections: int = Field(
        4096,
        ge=2,
        description="Connections that may be open; one address may have half of them. Beyond, the one that waits longest for its "
        "client's request is closed; where none does, the new one is answered 503.",
        json_schema_extra=HTTP,
    )
    http_processes: PositiveInt = Field(
        1,
        le=64,
        description="Processes that have the clients' connections: they read requests, write answers and speak TLS. With several "
        "the server's own process has none, and answers through them; see door.md.",
        json_schema_extra=HTTP,
    )
    max_body_bytes: int = Field(
        16 * 2**20, ge=1024, description="Largest request body in bytes; more is a 413.", json_schema_extra=HTTP
    )
    default_max_tokens: PositiveInt | None = Field(
        None,
        description="Most tokens of an answer to a request without `max_tokens`. If absent, as at OpenAI: 16 for a completion, "
        "what is left of the context for a chat answer.",
        json_schema_extra=HTTP,
    )
    max_output_tokens: PositiveInt | None = Field(
        None,
        description="Largest `max_tokens` and `max_completion_tokens`, and most tokens of an answer to a request without. If "
        "absent, what the context has room for.",
        json_schema_extra=HTTP,
    )
    max_prompts: PositiveInt = Field(
        1024, description="Most prompts in one completions request.", json_schema_extra=HTTP
    )
    max_inputs: PositiveInt = Field(
        2048,
        description="Most inputs in one request for vectors, and most documents or texts in one for scores.",
        json_schema_extra=HTTP,
    )
    max_items: PositiveInt = Field(
        16_384, description="Most items of `input` in one request for a response.", json_schema_extra=HTTP
    )
    max_n: PositiveInt = Field(128, description="Largest `n`.", json_schema_extra=HTTP)
    max_stop: PositiveInt = Field(
        16, description="Most entries of `stop`, and of `stop_token_ids`.", json_schema_extra=HTTP
    )
    max_logit_bias: PositiveInt = Field(
        1024, description="Most entries of `logit_bias` and of `allowed_token_ids`.", json_schema_extra=HTTP
    )
    max_logprobs: int = Field(
        20, ge=0, description="Largest `logprobs`, `top_logprobs` and `prompt_logprobs`.", json_schema_extra=HTTP
    )
    max_bad_words: PositiveInt = Field(128, description="Most entries of `bad_words`.", json_schema_extra=HTTP)
    drain_seconds: float = Field(
        30.0,
        ge=0,
        description="How long open requests may continue after SIGTERM; what is left of that time may be taken to write KV "
        "that only the process has to the tier on disk.",
        json_schema_extra=HTTP,
    )
    health_seconds: float = Field(
        20.0,
        gt=0,
        description="/health and /ready say no while a step of the engine takes longer than this and than four times what its "
        "latest steps took for each token; and whenever an engine has been silent for 5 s.",
        json_schema_extra=HTTP,
    )
    start_seconds: float = Field(
        600.0, gt=0, description="How long an engine may take to start before it is given up.", json_schema_extra=HTTP
    )
    hang_seconds: float = Field(
        120.0,
        gt=0,
        description="An engine that is silent for this long (at least 5 s), or whose step takes longer than this and than four "
        "times what its latest steps took for each token, is killed and started again. So is a keeper that is silent so long.",
        json_schema_extra=HTTP,
    )
    replay_seconds: float = Field(
        600.0,
        gt=0,
        description="How long an open request whose engine ended may wait for an engine to go on with it.",
        json_schema_extra=HTTP,
    )
    resume_seconds: float = Field(
        60.0,
        ge=0,
        le=86400,
        description="How long a stream that was asked for as `resumable` is kept, and computed, for a client whose connection "
        "broke, and how long after its end. 0: such requests are refused.",
        json_schema_extra=HTTP,
    )
    resume_bytes: int = Field(
        4 * 2**20,
        ge=1024,
        description="Most bytes of one resumable stream that are kept, at most half of them for what was sent already. Beyond that "
        "a stream whose client is away ends with an error.",
        json_schema_extra=HTTP,
    )
    resume_total_bytes: int = Field(
        256 * 2**20,
        ge=1024,
        description="Most bytes of all resumable streams that are kept. Those that were read to their end give way first; beyond "
        "that, what was sent already, and a new resumable request is answered 429.",
        json_schema_extra=HTTP,
    )
    response_seconds: float = Field(
        3600.0,
        ge=0,
        le=30 * 86400,
        description="How long a response of /v1/responses is stored in memory after its last use. 0: none is.",
        json_schema_extra=HTTP,
    )
    response_bytes: int = Field(
        64 * 2**20,
        ge=1024,
        description="Most bytes of all stored responses; those that were used least recently give way.",
        json_schema_extra=HTTP,
    )
    max_background: int = Field(
        64,
        ge=0,
        description="Most responses of /v1/responses that run in the background at a time; one more is answered 429. 0: none may.",
        json_schema_extra=HTTP,
    )
    playground: bool = Field(True, description="Serve a page to try the model on at `/`.", json_schema_extra=HTTP)
    access_log: bool = Field(False, description="Log one line per request.", json_schema_extra=HTTP)
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged.", json_schema_extra=HTTP
    )
