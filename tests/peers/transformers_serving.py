"""Transformers' own continuous batching on what `engine.serve_bench` serves: the same shape, requests and lengths.

`python tests/peers/transformers_serving.py --json FILE`, on a GPU. The first round is not counted, as there.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
import transformers

REQUESTS, PROMPT, OUTPUT = 256, 512, 128


def model(device, **changes):
    """Llama 3 8B's shape with random weights, as `engine.gpu_bench.LLAMA_3_8B` has it."""
    shape = {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    config = transformers.LlamaConfig(**(shape | changes), attn_implementation="sdpa")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)


def serve(peer, name, requests=REQUESTS, prompt=PROMPT, output=OUTPUT):
    """Generate for all requests. Returns the line of the table."""
    seed = random.Random(name)
    inputs = [seed.choices(range(peer.config.vocab_size), k=prompt) for _ in range(requests)]
    settings = transformers.GenerationConfig(
        max_new_tokens=output, min_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    began = time.perf_counter()
    found = peer.generate_batch(inputs, generation_config=settings)
    seconds = time.perf_counter() - began
    tokens = sum(len(each.generated_tokens) for each in found.values())
    return {"name": name, "seconds": seconds, "output_tokens": tokens, "tokens_per_second": tokens / seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: torch finds none")
        return 1
    peer = model("cuda")
    lines = []
    for name in ("first", "warm"):
        lines.append(serve(peer, name))
        print(
            f"transformers {transformers.__version__}, {name}: {lines[-1]['tokens_per_second']:.0f} output tok/s",
            flush=True,
        )
        if arguments.json:
            arguments.json.write_text(
                json.dumps({"transformers": transformers.__version__, "serving": lines}, indent=1)
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
