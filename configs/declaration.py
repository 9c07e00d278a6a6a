"""Every knob of the server, declared once: type, bounds, default, help. Flags, variables, YAML and docs derive from it. Those
of the HTTP side stand in `http_declaration.py`, those of what is told of requests in `observability.py`.

A knob belongs here if an operator may set it. What a *request* may set stands in `server/schema`; what one knob means for
another, in `configs/settings.py`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from configs.roles import MOST_ENGINES, RoleCount
from configs.weights import Weight

# What a field's `json_schema_extra` says: the section to which it belongs, the device that reads it, whether it is shown.
MODEL: JsonDict = {"section": "model"}
KV_CACHE: JsonDict = {"section": "KV cache"}
SCHEDULER: JsonDict = {"section": "scheduler"}
HTTP: JsonDict = {"section": "HTTP"}
CPU: JsonDict = {"read_by": "cpu"}
GPU: JsonDict = {"read_by": "cuda"}
SECRET: JsonDict = {"secret": True}  # masked wherever settings are shown

PositiveInt = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class Declaration(BaseModel):
    """The knobs, each valid by itself. The flag of `kv_blocks` is `--kv-blocks`, its variable `HEADRACE_KV_BLOCKS`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str | None = Field(
        None,
        description="A .gguf file, a Hugging Face folder or a hub name; the embedded SmolLM2-135M-Instruct if absent.",
        json_schema_extra=MODEL,
    )
    served_model_name: list[Text] = Field(
        default_factory=list,
        description="Names clients may use for the model; the model's own name if empty.",
        json_schema_extra=MODEL,
    )
    task: list[Literal["generate", "embed", "rerank"]] = Field(
        default_factory=list,
        description="What the model is served for, one or several. `generate`: text. `embed`: vectors, and similarities for "
        "/v1/rerank and /v1/score; a decoder makes them beside its text. `rerank`: scores of a cross-encoder. If empty, what the "
        "model is made for by its own files.",
        json_schema_extra=MODEL,
    )
    load_format: Literal["auto", "safetensors", "gguf", "dummy"] = Field(
        "auto",
        description="How weights are read. `dummy`: random weights of the shapes in the config.",
        json_schema_extra=MODEL,
    )
    model_impl: Literal["auto", "headrace", "transformers"] = Field(
        "auto",
        description="Whose code computes the model. `headrace`: a family of its own. `transformers`: the classes of the installed "
        "transformers (an extra) over headrace's blocks, on a CPU in fp32, many times slower. `auto`: those only without a family.",
        json_schema_extra=MODEL,
    )
    chat_template: str | None = Field(
        None, description="A Jinja file used instead of the model's own chat template.", json_schema_extra=MODEL
    )
    content_special_tokens: Literal["control", "text"] = Field(
        "control",
        description="What a special token's spelling in a chat message is. `control`: the token, so that a message can end its "
        "turn or forge another. `text`: text, whatever the chat template does to it; only the template itself makes tokens.",
        json_schema_extra=MODEL,
    )
    tool_format: Literal[
        "auto",
        "deepseek_v3",
        "deepseek_v31",
        "glm45",
        "granite",
        "hermes",
        "kimi_k2",
        "llama3_json",
        "mistral",
        "mistral_args",
        "pythonic",
        "qwen3_coder",
        "seed_oss",
    ] = Field(
        "auto",
        description="How the model writes calls of tools. `auto`: as its chat template shows, else `hermes`.",
        json_schema_extra=MODEL,
    )
    tool_template: Literal["generic", "refuse"] = Field(
        "generic",
        description="What becomes of tools that the chat template leaves out. `generic`: they are told to the model in words. "
        "`refuse`: such requests are refused.",
        json_schema_extra=MODEL,
    )
    reasoning_format: Literal["auto", "none", "granite", "mistral", "seed", "think"] = Field(
        "auto",
        description="The tags around what the model thinks before it answers, which answers then keep apart from their text. "
        "`auto`: those that its chat template has. `none`: it is text.",
        json_schema_extra=MODEL,
    )
    max_model_len: PositiveInt | None = Field(
        None,
        description="Longest prompt plus output, in tokens; the model's own limit if absent: `max_position_embeddings`, times the "
        "factor of linear scaling, or what YaRN stretches it to if that is more; and never more than the pool holds.",
        json_schema_extra=MODEL,
    )
    allow_long_max_model_len: bool = Field(
        False,
        description="Accept a max_model_len that is more than the model's own limit, with a warning.",
        json_schema_extra=MODEL,
    )
    cpu_precision: Literal["exact", "fast"] = Field(
        "fast",
        description="Arithmetic on the CPU. `exact`: fp32 on the dequantized weights. `fast`: int8 activations over "
        "the file's own weights, KV in bf16 (Q1_0, TQ1_0 and TQ2_0 become 8-bit weights of the same numbers; IQ1 to IQ3, NVFP4 and "
        "floats are rounded to 8 bits); fp32 where the C++ kernels are missing.",
        json_schema_extra=MODEL | CPU,
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="What computes. `auto`: a GPU where torch has one with compute capability 8.0 or more, else the CPU; the "
        "start-up log says which and why.",
        json_schema_extra=MODEL,
    )
    gpu_weights: Literal["auto", "dense", "fp8"] = Field(
        "auto",
        description="Weights on a GPU. `auto`: types that 4- or 8-bit groups hold exactly stay in those, all else in 16 bits. "
        "`dense`: 16 bits. `fp8`: rounded to 8-bit floats, and activations with them (lossy).",
        json_schema_extra=MODEL | GPU,
    )
    gpu_kv: Literal["auto", "fp8"] = Field(
        "auto",
        description="Keys and values on a GPU. `auto`: 16 bits. `fp8`: 8-bit floats with scales (lossy).",
        json_schema_extra=MODEL | GPU,
    )
    tensor_parallel: PositiveInt = Field(
        1,
        description="GPUs that compute one model together, each in a process of its own with its part of the heads, the inner "
        "width and the vocabulary.",
        json_schema_extra=MODEL | GPU,
    )
    engines: int = Field(
        1,
        ge=1,
        le=MOST_ENGINES,
        description="Engines behind the server, each a process that serves the whole model. GPUs are shared out in order, "
        "tensor_parallel to each; on a CPU each has its part of the cores and weights of its own. What is left of the memory "
        "is divided among them; KV tiers are shared by all; kv_blocks, threads, max_running and max_waiting are each engine's.",
        json_schema_extra=MODEL,
    )
    roles: list[RoleCount] = Field(
        default_factory=list,
        description="What engines are meant for, as in `prefill:1,decode:2`; `engines` follows from it. A `prefill` engine "
        "computes long prompts and hands each request over to a `decode` engine with its first token; a `mixed` one does both. "
        "All are mixed if empty.",
        json_schema_extra=MODEL,
    )
    cuda_graphs: bool = Field(
        True,
        description="Record decode steps as CUDA graphs while serving, the most needed first.",
        json_schema_extra=MODEL | GPU,
    )
    gpu_shared_prefixes: bool = Field(
        False,
        description="Cascade attention: attend to a prefix that running requests share once for all of them, where that saves "
        "time. The last bits of a result then depend on the other requests in the batch.",
        json_schema_extra=MODEL | GPU,
    )
    threads: PositiveInt | None = Field(
        None,
        description="Threads the engine computes with; if absent, one for each core it may use.",
        json_schema_extra=MODEL,
    )

    block_size: Literal[8, 16, 32, 64, 128] = Field(
        32, description="Tokens in one KV block.", json_schema_extra=KV_CACHE
    )
    kv_blocks: PositiveInt | None = Field(
        None,
        description="KV blocks in the pool; if absent, as many as fit into the share of memory.",
        json_schema_extra=KV_CACHE,
    )
    kv_memory_fraction: float = Field(
        0.4,
        gt=0,
        le=0.9,
        description="Share of the memory left after the weights that the pool may take; not beside kv_blocks.",
        json_schema_extra=KV_CACHE | CPU,
    )
    gpu_memory_fraction: float = Field(
        0.9,
        gt=0,
        le=1,
        description="The same on a GPU: share of the free memory left after weights, activations and graphs.",
        json_schema_extra=KV_CACHE | GPU,
    )
    prefix_caching: bool = Field(True, description="Reuse the KV blocks of equal prefixes.", json_schema_extra=KV_CACHE)
    kv_host_gib: float = Field(
        0.0,
        ge=0,
        description="Memory of the host, in GiB, for copies of KV blocks that the pool has no room for, of all engines together; "
        "0 = no such tier.",
        json_schema_extra=KV_CACHE,
    )
    kv_disk_path: Text | None = Field(
        None,
        description="A folder for copies of KV blocks that outlive the server; none = no such tier. One server at a time; "
        "its engines share it.",
        json_schema_extra=KV_CACHE,
    )
    kv_disk_gib: float = Field(
        8.0, gt=0, description="How much the folder may take, in GiB.", json_schema_extra=KV_CACHE
    )
    protect_kv: bool = Field(
        False,
        description="Copy the KV of running requests to the first tier as its blocks become full, so that after the death of an "
        "engine it is loaded instead of computed again. The copies take at most a quarter of a core.",
        json_schema_extra=KV_CACHE,
    )
    eviction: Literal["lru", "predicted"] = Field(
        "lru",
        description="Which cached KV is evicted when room is needed: `lru`, the least recently used; `predicted`, what is least "
        "likely to be asked for again, judging by the requests seen so far.",
        json_schema_extra=KV_CACHE,
    )
    preemption: Literal["auto", "swap", "recompute"] = Field(
        "auto",
        description="A preempted request's KV is saved to the tiers below and loaded again (`swap`), computed again "
        "(`recompute`), or whichever is faster at measured speeds (`auto`). Without tiers it is computed again.",
        json_schema_extra=KV_CACHE,
    )

    # Measured on two CPU cores with the embedded model: a 4,000-token prompt beside 8 streams holds their tokens up for 1.3 s at
    # 512, 0.5 s at 256 and 0.2 s at 128, while prefill and batches keep their speed.
    max_step_tokens: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="Token budget of one step: decodes first, prompt chunks take the rest. Less means shorter gaps between "
        "the tokens of running streams while a long prompt is computed. If absent 128 on a CPU, 2048 on a GPU.",
        json_schema_extra=SCHEDULER,
    )
    max_running: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Sequences that run at once. If absent 64 on a CPU, 256 on a GPU.",
        json_schema_extra=SCHEDULER,
    )
    max_waiting: int = Field(
        1024,
        ge=1,
        description="Sequences that may wait; more are answered 429 with Retry-After. A request of more sequences than this is "
        "let in when none waits.",
        json_schema_extra=SCHEDULER,
    )
    max_preemptions: int = Field(
        3,
        ge=0,
        description="Times one request may be preempted; then it is admitted again only with all its blocks reserved.",
        json_schema_extra=SCHEDULER,
    )
    decode_watermark: float = Field(
        0.02,
        ge=0,
        le=0.5,
        description="Share of the pool that admission leaves free for the growth of running sequences.",
        json_schema_extra=SCHEDULER,
    )
    speculation: Literal["auto", "off", "lookup", "draft"] = Field(
        "auto",
        description="Guesses of the tokens that come next, which a step verifies all at once: answers are the same, in fewer "
        "steps. `lookup`: what followed the newest tokens before, in the prompt, the answer or a `prediction`, as far as it pays. "
        "`draft`: besides, what the model of draft_model would go on with. `auto`: `lookup`, or `draft` with a draft_model, with "
        "cpu_precision fast, where verified guesses change no bit; elsewhere they change roundings. What a "
        "grammar leaves no choice about is always computed ahead.",
        json_schema_extra=SCHEDULER,
    )
    draft_model: str | None = Field(
        None,
        min_length=1,
        description="A smaller model with the same tokens, whose guesses the model verifies: a .gguf file, a Hugging Face folder "
        "or a hub name. It is loaded besides, with as many KV blocks of its own, and used as far as it pays.",
        json_schema_extra=SCHEDULER | CPU,
    )
    scheduling: Literal["fcfs", "priority", "fair", "throughput"] = Field(
        "priority",
        description="Which requests go first. `fcfs`: the earliest. `priority`: those with a lower `priority`, which also preempt "
        "running requests of a higher number. `fair`: by priority, then by the tenant that was served least. `throughput`: by "
        "priority, then one shared prefix after another, for offline batches. See scheduling.md.",
        json_schema_extra=SCHEDULER,
    )
    priority_scope: Literal["tenant", "all", "none"] = Field(
        "tenant",
        description="Whose requests a request's `priority` may pass. `tenant`: those of the same API key, and everybody's for keys "
        "in priority_keys; where no keys are required those of the same `user` with `fair`, else everybody's. `all`: everybody's. "
        "`none`: requests with a `priority` other than 0 are refused.",
        json_schema_extra=SCHEDULER,
    )
    priority_keys: list[Text] = Field(
        default_factory=list,
        description="With priority_scope `tenant`: API keys, by their names in key_names, whose requests' priorities hold among "
        "everybody's.",
        json_schema_extra=SCHEDULER,
    )
    priority_aging_seconds: float = Field(
        10.0,
        ge=0,
        le=86400,
        description="A request that has waited so long goes with the most urgent ones, whatever its `priority`; at most an eighth "
        "of max_running at a time do. 0: priorities never age.",
        json_schema_extra=SCHEDULER,
    )
    tenant_weights: list[Weight] = Field(
        default_factory=list,
        description="With `fair`: shares of tenants, each NAME=WEIGHT with a weight from 0.01 to 100; 1 for those not named. A "
        "tenant is an API key, by its name in key_names, or a request's `user` where no keys are required.",
        json_schema_extra=SCHEDULER,
    )
    routing: Literal["round-robin", "least-work", "prefix-aware", "least-loaded"] = Field(
        "prefix-aware",
        description="With several engines: which of them gets a request. `round-robin`: the next in turn. `least-work`: the one "
        "where prompts wait the shortest time. `prefix-aware`: the one from which the first token is expected the soonest, by what "
        "waits there, what of the prompt is cached there, and the measured speed. `least-loaded` is the old name of `least-work`.",
        json_schema_extra=SCHEDULER,
    )
    decode_slo_ms: float | None = Field(
        None,
        gt=0,
        le=60_000,
        description="With several engines: milliseconds between the tokens of a sequence that `prefix-aware` routing keeps to. An "
        "engine where they would be longer gets a request only if they would be longer everywhere. Absent: no limit.",
        json_schema_extra=SCHEDULER,
    )
    ttft_slo_ms: float | None = Field(
        None,
        gt=0,
        le=600_000,
        description="With prefill and decode engines: milliseconds to the first token that requests are held against.",
        json_schema_extra=SCHEDULER,
    )
    role_switching: Literal["auto", "off"] = Field(
        "auto",
        description="`auto`: where requests exceed ttft_slo_ms or decode_slo_ms, an engine that can be spared changes its role.",
        json_schema_extra=SCHEDULER,
    )
    decode_price: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="With `fair`: cost of a generated token, in prompt tokens; measured from the steps if absent.",
        json_schema_extra=SCHEDULER,
    )
