"""A decoder that is transformers' own, with its attention over our blocks.

transformers lets an attention function of others be named for all layers (its `AttentionInterface`, by which TGI and vLLM run its
models). Ours stores keys and values in the pool and attends to them there, for the rows of all sequences of a step: to the model
these are one sequence of tokens with positions of their own, and everything but attention computes row by row.
"""

from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from configs.model.config import ModelConfig
from configs.model.source import ModelError, ModelSource
from engine.cpu.batch import Batch
from engine.cpu.kv_pool import KvPool
from engine.sequence_input import SequenceInput
from kernels.cpu.ops.paged_attention import paged_attention
from kernels.cpu.ops.write_kv import kv_write

_numbers = count()  # transformers finds attention functions by name, and forgets none


class TransformersDecoder:
    """A loaded model. Stateless between calls, like `engine.cpu.decoder.Decoder`, whose place it takes.

    Args:
        source: a Hugging Face folder.
        config: its description.
        load_format: `dummy`: random weights.
        pool: in whose first two blocks short texts are computed, to see that the model computes what its description says.

    Raises:
        ModelError: the files do not fit, or attention needs what ours does not compute.
    """

    def __init__(self, source: ModelSource, config: ModelConfig, load_format: str, pool: KvPool) -> None:
        from transformers import AttentionInterface

        self.config = config
        self._attention = PagedAttention(config)
        name = f"headrace_{next(_numbers)}"
        AttentionInterface.register(name, self._attention)
        self._model = _loaded(source, load_format, name)
        prefix = self._model.base_model_prefix
        self._body: Any = getattr(self._model, prefix)
        self._given = Given()
        # What comes after the body is computed for the rows alone that are wanted.
        setattr(self._model, prefix, self._given)
        self._try(source, pool)

    @torch.inference_mode()
    def forward(self, batch: Batch, pool: KvPool) -> Tensor:
        """Compute all rows of `batch`, writing their keys and values into `pool`; fp32 [rows, hidden] as the head takes them."""
        self._attention.begin(batch, pool)
        out = self._body(input_ids=batch.token_ids[None], position_ids=batch.positions[None], use_cache=False)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of all tokens after each row: fp32 [n, hidden] from `forward` to fp32 [n, vocab]."""
        self._given.hidden = hidden[None]
        rows = torch.zeros(1, len(hidden), dtype=torch.int64)
        scores: Tensor = self._model(input_ids=rows, use_cache=False).logits[0]
        return scores.float().contiguous()

    def _try(self, source: ModelSource, pool: KvPool) -> None:
        """Two short texts in the first two blocks of the pool, whose second tokens come each alone, then both in one step."""
        last = min(1, pool.keys[0].shape[1] // pool.block_size - 1)
        first, second = (
            [
                SequenceInput(token_ids=[token], start=start, block_table=[at])
                for token, at in zip(tokens, (0, last), strict=True)
            ]
            for start, tokens in enumerate([(0, 1), (1, 0)])
        )
        try:
            for text in first:
                self.forward(Batch.build([text], pool), pool)
            alone = [self.logits(self.forward(Batch.build([text], pool), pool)) for text in second]
            both = self.logits(self.forward(Batch.build(second, pool), pool))
        except (ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise ModelError(f"{source.name}: transformers' class does not compute over our blocks: {error}") from error
        if self._attention.layers != set(range(self.config.layers)):
            raise ModelError(
                f"{source.name}: {len(self._attention.layers)} of {self.config.layers} layers attend by our function; the model "
                "cannot be served by transformers' classes."
            )
        if last and not torch.allclose(torch.cat(alone), both, rtol=1e-3, atol=1e-3 * float(both.std())):
            raise ModelError(
                f"{source.name}: transformers' class computes a text otherwise beside another one (does it take positions from "
                "where tokens stand in the batch?); the model cannot be served by transformers' classes."
            )


class PagedAttention:
    """The attention function that all layers call: transformers' shapes outside, blocks inside.

    Args:
        config: says how wide heads and windows are.

    Attributes:
        layers: which have called it.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._step: tuple[Batch, KvPool] | None = None
        self.layers: set[int] = set()

    def begin(self, batch: Batch, pool: KvPool) -> None:
        """The rows that the next calls are about."""
        self._step = batch, pool

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **how: Any
    ) -> tuple[Tensor, None]:
        """Store `key` and `value`, [1, kv_heads, rows, dim], of one layer, and attend by `query`, [1, heads, rows, dim].

        Returns:
            fp32 [1, rows, heads, dim of a value], and no weights.

        Raises:
            ValueError: an option that is not computed, or other shapes than the description has.
        """
        assert self._step is not None, "begin first"
        (batch, pool), config, layer = self._step, self._config, int(module.layer_idx)
        if how.get("s_aux") is not None:
            raise ValueError("attention sinks are not computed")
        if not getattr(module, "is_causal", True):
            raise ValueError("attention that is not causal is not computed")
        rows, dim, own = query.shape[2], config.head_dim, value.shape[3]
        if query.shape[1] != config.heads or key.shape[1] != config.kv_heads or key.shape[3] != dim or own > dim:
            raise ValueError(
                f"heads are {list(query.shape)}, {list(key.shape)} and {list(value.shape)}, not as described"
            )
        window = how.get("sliding_window")
        if window is not None and window != config.sliding_window:
            raise ValueError(f"a window of {window} is not the described one of {config.sliding_window}")
        kv = torch.stack((key[0], nn.functional.pad(value[0], (0, dim - own)))).permute(2, 0, 1, 3).contiguous()
        kv_write(pool.rows[layer], batch.slots, kv.flatten(1))
        scale = how.get("scaling")
        out = paged_attention(
            query[0].transpose(0, 1).reshape(rows, config.kv_heads, config.group, dim),
            kv,
            pool.keys[layer],
            pool.values[layer],
            tiles=batch.full if window is None else batch.sliding,
            scale=dim**-0.5 if scale is None else float(scale),
            soft_cap=how.get("softcap"),
        )
        self.layers.add(layer)
        return out.view(1, rows, config.heads, dim)[..., :own], None


class Given(nn.Module):
    """In the place of a model's body: what the body has computed before."""

    hidden: Tensor

    def forward(self, **_how: Any) -> Any:
        """The rows."""
        from transformers.modeling_outputs import MoeModelOutputWithPast

        return MoeModelOutputWithPast(last_hidden_state=self.hidden)


def _loaded(source: ModelSource, load_format: str, attention: str) -> Any:
    """The model in fp32, with the attention of that name."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    if load_format == "gguf":
        raise ModelError(f"--load-format gguf does not fit {source.path}; use --load-format auto.")
    classes: Any = AutoModelForCausalLM
    quiet: Any = logging.disable_progress_bar
    quiet()
    how = {"dtype": torch.float32, "attn_implementation": attention}
    if load_format == "dummy":
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)
        return classes.from_config(config, trust_remote_code=False, **how).eval()
    try:
        model, report = classes.from_pretrained(
            source.path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **how,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot read {source.path}: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{source.path} lacks tensors: {', '.join(missing[:4])}; zeros are never served.")
    return model.eval()
