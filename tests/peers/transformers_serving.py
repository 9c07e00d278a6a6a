"""Transformers' own continuous batching on what `engine.bench.serve` serves: the same shape, requests and lengths.

`python tests/peers/transformers_serving.py --json FILE`, on a GPU. A few requests warm it up; they are not counted.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers.generation.continuous_batching.utils import WorkloadHints

REQUESTS, PROMPT, OUTPUT = 256, 512, 128
WARM_UP = 8  # requests
WAIT = 60.0  # seconds without any request's end: it hangs


def model(device, **changes):
    """Llama 3 8B's shape with random weights, as `engine.bench.steps.LLAMA_3_8B` has it."""
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


class Peer:
    """Transformers' manager over one model, kept from round to round; a context."""

    def __init__(self, served, requests=REQUESTS, prompt=PROMPT, output=OUTPUT, **options):
        self._prompt, self._output, self._vocab = prompt, output, served.config.vocab_size
        self._config = served.config
        settings = transformers.GenerationConfig(
            max_new_tokens=output, min_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        hints = WorkloadHints(max_prompt_length=prompt, max_generated_length=output, num_requests=requests)
        self._context = served.continuous_batching_context_manager(
            generation_config=settings, timeout=5, workload_hints=hints, **options
        )

    def __enter__(self):
        self._manager = self._context.__enter__()
        return self

    def __exit__(self, *error):
        return self._context.__exit__(*error)

    def serve(self, name, requests):
        """Generate for so many requests that share nothing. Returns the line of the table.

        Raises:
            RuntimeError: a request has failed, has other than all of its tokens, or does not come back.
        """
        seed = random.Random(name)
        inputs = [seed.choices(range(self._vocab), k=self._prompt) for _ in range(requests)]
        began = time.perf_counter()
        waiting = set(self._manager.add_requests(inputs=inputs, max_new_tokens=self._output))
        while waiting:
            done = self._result()
            if done.is_finished():
                waiting.remove(done.request_id)
        seconds = time.perf_counter() - began
        tokens = requests * self._output
        return {
            "name": name,
            "attention": self._config._attn_implementation,
            "seconds": seconds,
            "output_tokens": tokens,
            "tokens_per_second": tokens / seconds,
        }

    def _result(self):
        end = time.perf_counter() + WAIT
        while (done := self._manager.get_result(timeout=1)) is None:
            if time.perf_counter() > end or not self._manager.is_running():
                raise RuntimeError("transformers' manager gives no more results")
        if done.error is not None or (done.is_finished() and len(done.generated_tokens) != self._output):
            raise RuntimeError(f"{done.request_id}: {len(done.generated_tokens)} tokens, error {done.error}")
        return done


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: torch finds none")
        return 1
    lines = []
    with Peer(model("cuda")) as peer:
        for name, requests in (("warm-up", WARM_UP), ("warm", REQUESTS)):
            line = peer.serve(name, requests)
            lines.append(line)
            print(
                f"transformers {transformers.__version__}, {line['attention']}, {name}: {requests} requests, "
                f"{line['seconds']:.1f} s, {line['tokens_per_second']:.0f} output tok/s",
                flush=True,
            )
            if arguments.json:
                found = {"transformers": transformers.__version__, "serving": lines}
                arguments.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
