"""The C++ kernels of `kernels/cpu/csrc/`, bound with ctypes: pointers in, pointers out, no Python while they run."""

import ctypes
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels.cpu.library import open_library
from kernels.cpu.packing import MatrixStruct, PackedMatrix
from kernels.cpu.tiles import TilesFrom, use_tiles
from kernels.cpu.variants import ACTIVATIONS

_pointer = ctypes.c_void_p
_int = ctypes.c_int64


_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
NORMS = (
    *("input_norm", "post_norm", "after_attention_norm", "after_mlp_norm"),
    *("q_norm", "k_norm", "wide_q_norm", "wide_k_norm"),
)
_VECTORS = (
    *NORMS,
    *("q_bias", "k_bias", "v_bias", "o_bias", "gate_bias", "up_bias", "down_bias"),
)


_FACTORS = ("embedding_scale", "residual_scale", "logit_scale")


class _LayerStruct(ctypes.Structure):
    _fields_ = (
        *((name, MatrixStruct) for name in _MATRICES),
        *((name, _pointer) for name in _VECTORS),
        *((name, _pointer) for name in ("cos", "sin")),
        ("window", _int),
    )


class _Heads(ctypes.Structure):
    _fields_ = (
        *((name, _int) for name in ("heads", "kv_heads", "dim", "rotated")),
        ("scale", ctypes.c_float),
        ("soft_cap", ctypes.c_float),
    )


class _Turn(ctypes.Structure):
    _fields_ = (
        *((name, _pointer) for name in ("q_norm", "k_norm", "wide_q_norm", "wide_k_norm")),
        ("eps", ctypes.c_float),
        ("cos", _pointer),
        ("sin", _pointer),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("heads", _Heads),
        *((name, _int) for name in ("hidden", "intermediate", "layers", "activation")),
        *((name, ctypes.c_float) for name in ("eps", *_FACTORS, "final_soft_cap")),
        ("layer", ctypes.POINTER(_LayerStruct)),
        ("embedding", MatrixStruct),
        ("head", MatrixStruct),
        ("final_norm", _pointer),
    )


class _Chunk(ctypes.Structure):
    _fields_ = (*((name, _int) for name in ("first", "rows", "start", "wanted")), ("table", _pointer))


class _Step(ctypes.Structure):
    _fields_ = (("rows", _int), ("chunks", _int), ("tokens", _pointer), ("chunk", ctypes.POINTER(_Chunk)))


class _Cache(ctypes.Structure):
    _fields_ = (("storage", _pointer), *((name, _int) for name in ("block_size", "layers", "kv_heads", "dim")))


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeLayer:
    """One layer's weights. Norms and biases are contiguous fp32, and None where a family has none.

    Queries and keys are normed head by head (`q_norm`, `k_norm`: [dim]) or over all heads (`wide_q_norm`: [heads * dim],
    `wide_k_norm`: [kv_heads * dim]); what attention and MLP give may be normed before it is added to the residual.
    """

    q: PackedMatrix
    k: PackedMatrix
    v: PackedMatrix
    o: PackedMatrix
    gate: PackedMatrix
    up: PackedMatrix
    down: PackedMatrix
    input_norm: Tensor | None = None
    post_norm: Tensor | None = None
    after_attention_norm: Tensor | None = None
    after_mlp_norm: Tensor | None = None
    wide_q_norm: Tensor | None = None
    wide_k_norm: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    o_bias: Tensor | None = None
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    window: int = 0  # how many of the newest keys a row sees; 0 for all


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeModel:
    """A model's weights, shape and variants (`activation` is one of `ACTIVATIONS`).

    Attributes:
        turns: cosines and sines, fp32 [positions, rotated / 2] each, of the first dimensions of a head.
        turn_of_layer: which of them turns each layer's queries and keys; None: nothing does.
        attention_scale: factor on scores; None: dim ** -0.5.
        attention_soft_cap: scores s become cap * tanh(s / cap); likewise `final_soft_cap` of logits, after `logit_scale`.
        embedding_scale, residual_scale, logit_scale: factors on embeddings, on what is added to the residual, on logits.
    """

    heads: int
    kv_heads: int
    dim: int
    eps: float
    layers: Sequence[NativeLayer]
    embedding: PackedMatrix
    head: PackedMatrix
    final_norm: Tensor
    turns: Sequence[tuple[Tensor, Tensor]]
    turn_of_layer: Sequence[int | None]
    activation: str = "silu"
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    embedding_scale: float | None = None
    residual_scale: float | None = None
    logit_scale: float | None = None


@dataclass(frozen=True, slots=True)
class NativeChunk:
    """Rows of one sequence: positions `[start, start + rows)`; `table` has the sequence's block ids.

    `NativeDecoder.forward` gives results for the last `wanted` rows.
    """

    rows: int
    start: int
    table: Sequence[int]
    wanted: int = 0


class NativeOps:
    """An open library and a team of threads to run it on.

    Args:
        library: its path.
        threads: of the team.
        tiles: from how many rows on products take the processor's tiles, for all users of the library; as measured, if None.

    Raises:
        OSError: the library cannot be loaded.
    """

    def __init__(self, library: Path, threads: int, tiles: TilesFrom | None = None) -> None:
        self.library = open_library(library)
        self.tiles = use_tiles(library, tiles)
        self.team = self.library.headrace_team(threads)

    def __del__(self) -> None:
        if hasattr(self, "team"):
            self.library.headrace_team_free(self.team)

    def linear(self, rows: Tensor, *weights: PackedMatrix) -> Tensor:
        """fp32 [rows, columns], contiguous, to fp32 [rows, outputs]: `rows @ weight.T`, with the rows rounded to int8.

        Several weights of one shape are used one after another, as a step does with its layers; the last result is returned.
        """
        out = torch.empty(len(rows), weights[-1].outputs)
        matrices = (MatrixStruct * len(weights))(*(weight.struct for weight in weights))
        self.library.headrace_linear(
            self.team, ctypes.byref(matrices), len(weights), rows.data_ptr(), len(rows), out.data_ptr()
        )
        return out

    def products(self, times: int, rows: Tensor, weights: Tensor) -> int:
        """The sum of `rows @ weights`, which each thread computes `times` times: products that wait for nothing.

        Args:
            times: at least 1.
            rows: int8 [4, 32], contiguous.
            weights: uint8 below 16, contiguous, [8, 16, 4]: columns 4 j .. 4 j + 3 of sixteen outputs.
        """
        found: int = self.library.headrace_products(self.team, times, rows.data_ptr(), weights.data_ptr())
        return found

    def read(self, memory: Tensor) -> Tensor:
        """Read int32 [n, 16], contiguous, by all threads: int32 [16], its sum over n."""
        out = torch.empty(memory.shape[1], dtype=torch.int32)
        self.library.headrace_read(self.team, memory.data_ptr(), memory.nbytes, out.data_ptr())
        return out

    def mask(self, logits: Tensor, rows: Sequence[int], allowed: Tensor) -> None:
        """Add -inf in place to what is not allowed: a NaN stays one, and +inf becomes one.

        Args:
            logits: fp32 [all rows, vocabulary], contiguous.
            rows: those to mask, each once.
            allowed: int32 [rows, words], contiguous: bit `i % 32` of word `i // 32` stands for token `i`.
        """
        places = array("q", rows)
        vocabulary, words = logits.shape[1], allowed.shape[1]
        start, bits = places.buffer_info()[0], allowed.data_ptr()
        self.library.headrace_mask(self.team, logits.data_ptr(), vocabulary, start, len(rows), bits, words)

    def attention(
        self,
        qkv: Tensor,
        chunks: Sequence[NativeChunk],
        storage: Tensor,
        *,
        heads: int,
        layers: range,
        window: int,
        cos: Tensor,
        sin: Tensor,
        scale: float | None = None,
        soft_cap: float | None = None,
    ) -> Tensor:
        """Rotate and store each layer's keys and values, then attend; the last layer's result is returned.

        Args:
            qkv: fp32 [rows, (heads + 2 * kv_heads) * dim], contiguous; queries and keys are rotated in place.
            chunks: as in `NativeDecoder.forward`; so is `storage`.
            heads: number of query heads.
            layers: consecutive layers of the pool.
            window: how many of the newest keys a row sees; 0 for all.
            cos: fp32 [positions, rotated / 2] of the first dimensions of each head; `sin` is the same.
            scale: factor on scores; None: dim ** -0.5.
            soft_cap: scores s become cap * tanh(s / cap).

        Returns:
            fp32 [rows, heads * dim].
        """
        kv_heads = storage.shape[2]
        dim = qkv.shape[1] // (heads + 2 * kv_heads)
        out = torch.empty(len(qkv), heads * dim)
        with _laid_out([], chunks, len(qkv)) as step:
            self.library.headrace_attention(
                self.team,
                ctypes.byref(_Heads(heads, kv_heads, dim, 2 * cos.shape[1], scale or 0.0, soft_cap or 0.0)),
                ctypes.byref(_Turn(cos=cos.data_ptr(), sin=sin.data_ptr())),
                ctypes.byref(step),
                ctypes.byref(_cache(storage, dim)),
                layers.start,
                layers.stop,
                window,
                qkv.data_ptr(),
                out.data_ptr(),
            )
        return out


class NativeDecoder:
    """A model ready to run. Not safe for concurrent calls."""

    def __init__(self, ops: NativeOps, model: NativeModel) -> None:
        self._ops = ops
        self._model = model  # keeps the memory alive that the structures point to
        self._hidden = model.embedding.columns
        self._outputs = model.head.outputs
        turns = [None if turn is None else model.turns[turn] for turn in model.turn_of_layer]
        self._layers = (_LayerStruct * len(model.layers))(*map(_layer, model.layers, turns))
        rotated, scale, cap = 2 * model.turns[0][0].shape[1], model.attention_scale, model.attention_soft_cap
        described = _Model(
            heads=_Heads(model.heads, model.kv_heads, model.dim, rotated, scale or 0.0, cap or 0.0),
            hidden=self._hidden,
            intermediate=model.layers[0].gate.outputs,
            layers=len(model.layers),
            activation=ACTIVATIONS[model.activation],
            eps=model.eps,
            **{name: getattr(model, name) or 1.0 for name in _FACTORS},
            final_soft_cap=model.final_soft_cap or 0.0,
            layer=self._layers,
            embedding=model.embedding.struct,
            head=model.head.struct,
            final_norm=model.final_norm.data_ptr(),
        )
        self._decoder = ops.library.headrace_decoder(ops.team, ctypes.byref(described))
        self._rows, self._scores = torch.empty(0, self._hidden), torch.empty(0, self._outputs)

    def __del__(self) -> None:
        if hasattr(self, "_decoder"):
            self._ops.library.headrace_decoder_free(self._decoder)

    def forward(self, token_ids: Sequence[int], chunks: Sequence[NativeChunk], storage: Tensor) -> Tensor:
        """Compute the rows of all chunks, writing their keys and values into the pool.

        Args:
            token_ids: of all rows, chunk after chunk.
            chunks: the sequences and positions of the rows, in order.
            storage: int32 [blocks, layers, kv_heads, 2, block_size * dim / 2], the pool (layout in `csrc/attention.h`).

        Returns:
            fp32 [wanted rows, hidden] after the final norm, in order; valid until the next call.
        """
        wanted = sum(chunk.wanted for chunk in chunks)
        self._rows = hidden = _at_least(self._rows, wanted)
        with _laid_out(token_ids, chunks, len(token_ids)) as step:
            cache = _cache(storage, self._model.dim)
            self._ops.library.headrace_forward(
                self._decoder, ctypes.byref(step), ctypes.byref(cache), hidden.data_ptr()
            )
        return hidden[:wanted]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits: from fp32 [n, hidden], contiguous, to fp32 [n, vocab], valid until the next call."""
        self._scores = out = _at_least(self._scores, len(hidden))
        self._ops.library.headrace_logits(self._decoder, hidden.data_ptr(), len(hidden), out.data_ptr())
        return out[: len(hidden)]


def _at_least(kept: Tensor, rows: int) -> Tensor:
    """At least `rows` rows of memory, kept from step to step: clearing fresh pages took 5 % of a step with 32 rows."""
    return kept if len(kept) >= rows else torch.empty(rows, kept.shape[1])


@contextmanager
def _laid_out(token_ids: Sequence[int], chunks: Sequence[NativeChunk], rows: int) -> Iterator[_Step]:
    """The step as the library reads it; its memory lives as long as the `with` block."""
    if sum(chunk.rows for chunk in chunks) != rows:
        raise ValueError(f"chunks of {[chunk.rows for chunk in chunks]} rows do not make {rows}")
    tokens = array("q", token_ids)
    tables = [array("i", chunk.table) for chunk in chunks]
    laid, first = (_Chunk * len(chunks))(), 0
    for place, chunk, table in zip(laid, chunks, tables, strict=True):
        place.first, place.rows, place.start, place.wanted = first, chunk.rows, chunk.start, chunk.wanted
        place.table = table.buffer_info()[0]
        first += chunk.rows
    yield _Step(rows, len(chunks), tokens.buffer_info()[0], laid)
    del tokens, tables


def _cache(storage: Tensor, dim: int) -> _Cache:
    _, layers, kv_heads, _, half_block = storage.shape
    return _Cache(storage.data_ptr(), half_block * 2 // dim, layers, kv_heads, dim)


def _layer(layer: NativeLayer, turn: tuple[Tensor, Tensor] | None) -> _LayerStruct:
    matrices = {name: getattr(layer, name).struct for name in _MATRICES}
    vectors = {name: getattr(layer, name) for name in _VECTORS}
    pointers = {name: None if vector is None else vector.data_ptr() for name, vector in vectors.items()}
    if turn is not None:
        pointers |= {"cos": turn[0].data_ptr(), "sin": turn[1].data_ptr()}
    return _LayerStruct(**matrices, **pointers, window=layer.window)
