"""Every knob of the server, declared once: type, bounds, default, help. Flags, variables, YAML and docs derive from it.

A knob belongs here when an operator may set it. What a *request* may set stands in `server/schema`.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


def parse_weight(text: str) -> tuple[str, float]:
    """A tenant and its weight, of `NAME=WEIGHT`; the name may hold further equals signs.

    Raises:
        ValueError: the text is not such a pair, or the weight is not from 0.01 to 100.
    """
    name, equals, number = text.rpartition("=")
    weight = float(number)
    if not equals or not 0.01 <= weight <= 100:
        raise ValueError(f"must be NAME=WEIGHT with a weight from 0.01 to 100, got {text!r}")
    return name, weight


def _check_weight(text: str) -> str:
    parse_weight(text)
    return text


Weight = Annotated[str, AfterValidator(_check_weight)]


class Settings(BaseModel):
    """Validated settings of one server. The flag of `kv_blocks` is `--kv-blocks`, its variable `HEADRACE_KV_BLOCKS`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # --- model ---
    model: str | None = Field(
        None,
        description="A .gguf file, a Hugging Face folder or a hub name; the embedded SmolLM2-135M-Instruct if absent.",
    )
    served_model_name: list[Text] = Field(
        default_factory=list, description="Names clients may use for the model; the model's own name if empty."
    )
    load_format: Literal["auto", "safetensors", "gguf", "dummy"] = Field(
        "auto", description="How weights are read. `dummy`: random weights of the shapes in the config."
    )
    chat_template: str | None = Field(None, description="A Jinja file used instead of the model's own chat template.")
    max_model_len: PositiveInt | None = Field(
        None, description="Longest prompt plus output, in tokens; the model's own limit if absent."
    )
    cpu_precision: Literal["exact", "fast"] = Field(
        "fast",
        description="Arithmetic on the CPU. `exact`: fp32 on the dequantized weights. `fast`: int8 activations over 4- and "
        "8-bit weights, KV in bf16 (weights of other types are rounded to 8 bits); fp32 where the C++ kernels are missing.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="What computes. `auto`: a GPU where torch has one with compute capability 8.0 or more, else the CPU; the "
        "start-up log says which and why.",
    )
    gpu_weights: Literal["auto", "dense", "fp8"] = Field(
        "auto",
        description="Weights on a GPU. `auto`: 4- and 8-bit groups as the file has them, all else in 16 bits. `dense`: 16 bits. "
        "`fp8`: rounded to 8-bit floats, and activations with them (lossy).",
    )
    gpu_kv: Literal["auto", "fp8"] = Field(
        "auto", description="Keys and values on a GPU. `auto`: 16 bits. `fp8`: 8-bit floats with scales (lossy)."
    )
    tensor_parallel: PositiveInt = Field(
        1,
        description="GPUs that compute one model together, each with its part of the heads, the inner width and the vocabulary, "
        "in a process of its own.",
    )
    cuda_graphs: bool = Field(
        True, description="Record decode steps as CUDA graphs while serving, the one that is missed most first."
    )
    gpu_shared_prefixes: bool = Field(
        False,
        description="Cascade attention: attend to a prefix that running requests share once for all of them where that saves "
        "time. The last bits of a result then depend on the requests beside it.",
    )
    threads: PositiveInt | None = Field(None, description="Threads the engine computes with; all cores if absent.")

    # --- KV cache ---
    block_size: Literal[8, 16, 32, 64, 128] = Field(32, description="Tokens in one KV block.")
    kv_blocks: PositiveInt | None = Field(None, description="KV blocks in the pool; from free memory if absent.")
    kv_memory_fraction: float = Field(
        0.4,
        gt=0,
        le=0.9,
        description="Share of the memory left after the weights that the pool may take if kv_blocks is absent.",
    )
    gpu_memory_fraction: float = Field(
        0.9,
        gt=0,
        le=1,
        description="The same on a GPU, of what is free there and left after weights, activations and graphs.",
    )
    prefix_caching: bool = Field(True, description="Reuse the KV blocks of equal prefixes.")
    kv_host_gib: float = Field(
        0.0,
        ge=0,
        description="Memory of the host, in GiB, for copies of KV blocks that the pool has no room for; 0 = no such tier.",
    )
    kv_disk_path: Text | None = Field(
        None,
        description="A folder for copies of KV blocks that outlive the server; none = no such tier. One server at a time.",
    )
    kv_disk_gib: float = Field(8.0, gt=0, description="Bytes the folder may take, in GiB.")
    eviction: Literal["lru", "predicted"] = Field(
        "lru",
        description="Which cached KV gives way when room is needed: `lru`, what was used longest ago; `predicted`, what by "
        "what was seen so far will hardly be asked for again.",
    )
    preemption: Literal["auto", "swap", "recompute"] = Field(
        "auto",
        description="A preempted request's KV is saved to the tiers below and loaded again (`swap`), computed again "
        "(`recompute`), or whichever is sooner by measured speeds. Without tiers it is computed again.",
    )

    # --- scheduler ---
    # Measured on two CPU cores with the embedded model: a 4,000-token prompt beside 8 streams holds their tokens up for 1.3 s at
    # 512, 0.5 s at 256 and 0.2 s at 128, while prefill and batches keep their speed.
    max_step_tokens: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="Token budget of one step: decodes first, prompt chunks take the rest. Less means shorter gaps between "
        "the tokens of running streams while a long prompt is computed. If absent 128 on a CPU, 2048 on a GPU.",
    )
    max_running: int | None = Field(
        None, ge=1, le=4096, description="Sequences that run at once. If absent 64 on a CPU, 256 on a GPU."
    )
    max_waiting: int = Field(1024, ge=1, description="Sequences that may wait; more are answered 429 with Retry-After.")
    max_preemptions: int = Field(
        3,
        ge=0,
        description="Times one request may be preempted; then it is admitted again only with all its blocks reserved.",
    )
    decode_watermark: float = Field(
        0.02,
        ge=0,
        le=0.5,
        description="Share of the pool that admission leaves free for the growth of running sequences.",
    )
    scheduling: Literal["fcfs", "priority", "fair", "throughput"] = Field(
        "priority",
        description="Who goes first: who came first (`fcfs`), a lower `priority` (which also takes the place of running requests "
        "of a higher number), priority and then the tenant that has had least (`fair`), or priority and then one shared prefix "
        "after the other, for offline batches (`throughput`); see scheduling.md.",
    )
    tenant_weights: list[Weight] = Field(
        default_factory=list,
        description="With `fair`: shares of tenants, each NAME=WEIGHT with a weight from 0.01 to 100, 1 if not named. A tenant is "
        "a key, by its name in key_names, or where no keys are asked for a request's `user`.",
    )
    decode_price: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="With `fair`: what a generated token counts in prompt tokens; measured from the steps if absent.",
    )

    # --- HTTP ---
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    api_key: list[Text] = Field(
        default_factory=list,
        description="Keys that clients must send as a bearer token; none = open.",
        json_schema_extra={"secret": True},  # masked wherever settings are shown
    )
    key_names: list[Text] = Field(
        default_factory=list,
        description="Names of the tenants that the keys of api_key stand for, in their order; keys of one name are one "
        "tenant. `key1`, `key2`.. if empty.",
    )
    isolate_keys: bool = Field(
        False, description="Requests of different keys share no cached prefixes; each key is a salt of its own."
    )
    unknown_fields: Literal["refuse", "ignore"] = Field(
        "refuse", description="Request fields nobody knows: answer 400, or ignore them with a warning header."
    )
    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="Largest request body in bytes; more is a 413.")
    max_prompts: PositiveInt = Field(1024, description="Most prompts in one completions request.")
    max_n: PositiveInt = Field(128, description="Largest `n`.")
    max_stop: PositiveInt = Field(16, description="Most entries of `stop`, and of `stop_token_ids`.")
    max_logit_bias: PositiveInt = Field(1024, description="Most entries of `logit_bias`.")
    max_logprobs: int = Field(20, ge=0, description="Largest `logprobs`, `top_logprobs` and `prompt_logprobs`.")
    max_bad_words: PositiveInt = Field(128, description="Most entries of `bad_words`.")
    drain_seconds: float = Field(30.0, ge=0, description="How long open requests may go on after SIGTERM.")
    health_seconds: float = Field(
        20.0, gt=0, description="/health is good if a token was produced within this time, else one is produced now."
    )
    start_seconds: float = Field(600.0, gt=0, description="How long an engine may take to start before it is given up.")
    hang_seconds: float = Field(
        120.0,
        gt=0,
        description="An engine that says nothing for this long while requests are open is killed and started again.",
    )
    access_log: bool = Field(False, description="Log one line per request.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
