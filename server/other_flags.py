"""Flags that other servers have and this one calls differently or does not have, for the sentence that refuses them."""

_MODEL = "the model is the argument MODEL: `headrace serve MODEL`"
_ALWAYS = "that is always so: leave it out"
_ADAPTERS = "adapters are not served"
_DRAFTS = "--draft-model"
_TOOLS = "tool calls are not served"
_IMAGES = "images are not served"

# Of vLLM and llama.cpp. A flag of ours, or a sentence.
_MEANINGS = {
    "--model": _MODEL,
    "-m": _MODEL,
    "--hf-repo": _MODEL,
    "--alias": "--served-model-name",
    "-a": "--served-model-name",
    "--ctx-size": "--max-model-len",
    "-c": "--max-model-len",
    "--max-num-seqs": "--max-running",
    "--parallel": "--max-running",
    "-np": "--max-running",
    "--max-num-batched-tokens": "--max-step-tokens",
    "--batch-size": "--max-step-tokens",
    "-b": "--max-step-tokens",
    "--ubatch-size": "--max-step-tokens",
    "-ub": "--max-step-tokens",
    "-t": "--threads",
    "--enable-prefix-caching": "--prefix-caching",
    "--no-enable-prefix-caching": "--no-prefix-caching",
    "--num-gpu-blocks-override": "--kv-blocks",
    "--gpu-memory-utilization": "--gpu-memory-fraction",
    "--swap-space": "--kv-host-gib",
    "--kv-cache-dtype": "--gpu-kv",
    "--quantization": "--gpu-weights",
    "--tensor-parallel-size": "--tensor-parallel",
    "-tp": "--tensor-parallel",
    "--enforce-eager": "--no-cuda-graphs",
    "--scheduling-policy": "--scheduling",
    "--enable-log-requests": "--access-log",
    "--uvicorn-log-level": "--log-level",
    "--allowed-origins": "--cors-origins",
    "--unix-socket": "--uds",
    "--chat-template-file": "--chat-template",
    "--dtype": "the model's files and the device decide it: --cpu-precision and --gpu-weights say how",
    "--n-gpu-layers": "a model is on one device as a whole: --device says on which",
    "-ngl": "a model is on one device as a whole: --device says on which",
    "--data-parallel-size": "--engines",
    "--api-server-count": "--http-processes",
    "-dp": "--engines",
    "--pipeline-parallel-size": "a model is not split by layers: --tensor-parallel splits each layer",
    "--enable-chunked-prefill": _ALWAYS,
    "--cont-batching": _ALWAYS,
    "--jinja": _ALWAYS,
    "--trust-remote-code": "no code that comes with a model is run",
    "--tokenizer": "the tokenizer is the model's own",
    "--ssl-keyfile": "--tls-key",
    "--ssl-certfile": "--tls-cert",
    "--ssl-key-file": "--tls-key",
    "--ssl-cert-file": "--tls-cert",
    "--enable-ssl-refresh": _ALWAYS,
    "--lora": _ADAPTERS,
    "--lora-modules": _ADAPTERS,
    "--enable-lora": _ADAPTERS,
    "--speculative-config": "tokens are guessed ahead as --speculation says, by a draft model with --draft-model",
    "--model-draft": _DRAFTS,
    "-md": _DRAFTS,
    "--enable-auto-tool-choice": _TOOLS,
    "--tool-call-parser": _TOOLS,
    "--reasoning-parser": "what a model thinks stays in the text",
    "--mmproj": _IMAGES,
    "--limit-mm-per-prompt": _IMAGES,
    "--embedding": "embeddings are not served",
}


def meaning_of(flag: str) -> str:
    """What to use instead of another server's flag, as the end of a sentence; nothing if it is not known either."""
    meaning = _MEANINGS.get(flag, "")
    return f" Here it is {meaning}." if meaning.startswith("-") else meaning and f" {meaning[0].upper()}{meaning[1:]}."
