"""The C++ kernels of `kernels/cpu/native/`, bound with ctypes: pointers in, pointers out, no Python while they run.

ctypes and not a torch extension: the sources see no torch headers, so they compile in seconds, with any compiler, and the
library works with every torch version. A call releases the GIL.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels.cpu.packing import PackedMatrix

_pointer = ctypes.c_void_p
_int = ctypes.c_int64


class _Matrix(ctypes.Structure):
    _fields_ = (("records", _pointer), ("outputs", _int), ("columns", _int), ("bits", _int))

    @classmethod
    def of(cls, matrix: PackedMatrix) -> "_Matrix":
        return cls(matrix.records.data_ptr(), matrix.outputs, matrix.columns, matrix.bits)


_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
_VECTORS = (
    *("input_norm", "post_norm", "q_norm", "k_norm"),
    *("q_bias", "k_bias", "v_bias", "o_bias", "gate_bias", "up_bias", "down_bias"),
)


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Matrix) for name in _MATRICES),
        *((name, _pointer) for name in _VECTORS),
        ("window", _int),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, _int) for name in ("hidden", "heads", "kv_heads", "dim", "intermediate", "layers")),
        ("eps", ctypes.c_float),
        ("layer", ctypes.POINTER(_Layer)),
        ("embedding", _Matrix),
        ("head", _Matrix),
        ("final_norm", _pointer),
        ("cos", _pointer),
        ("sin", _pointer),
    )


class _Chunk(ctypes.Structure):
    _fields_ = (("first", _int), ("rows", _int), ("start", _int), ("table", _pointer))


class _Step(ctypes.Structure):
    _fields_ = (("rows", _int), ("chunks", _int), ("tokens", _pointer), ("chunk", ctypes.POINTER(_Chunk)))


class _Cache(ctypes.Structure):
    _fields_ = (("storage", _pointer), *((name, _int) for name in ("block_size", "layers", "kv_heads", "dim")))


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeLayer:
    """One layer's weights. Norms and biases are fp32, contiguous; biases and q/k norms ([dim]) may be None."""

    q: PackedMatrix
    k: PackedMatrix
    v: PackedMatrix
    o: PackedMatrix
    gate: PackedMatrix
    up: PackedMatrix
    down: PackedMatrix
    input_norm: Tensor
    post_norm: Tensor
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    o_bias: Tensor | None = None
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    window: int = 0  # newest keys seen; 0 = all


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeModel:
    """A model's weights and shape. `cos` and `sin` are fp32 [positions, dim / 2]."""

    heads: int
    kv_heads: int
    dim: int
    eps: float
    layers: Sequence[NativeLayer]
    embedding: PackedMatrix
    head: PackedMatrix
    final_norm: Tensor
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class NativeChunk:
    """Rows of one sequence: positions `[start, start + rows)`, whose blocks are `table`."""

    rows: int
    start: int
    table: Sequence[int]


class NativeDecoder:
    """A model ready to run on a team of threads. One call at a time."""

    def __init__(self, library: Path, model: NativeModel, threads: int) -> None:
        self._library = _open(library)
        self._model = model  # keeps the memory alive that the structures point to
        self._hidden = model.embedding.columns
        self._outputs = model.head.outputs
        self._layers = (_Layer * len(model.layers))(*map(_layer, model.layers))
        described = _Model(
            hidden=self._hidden,
            heads=model.heads,
            kv_heads=model.kv_heads,
            dim=model.dim,
            intermediate=model.layers[0].gate.outputs,
            layers=len(model.layers),
            eps=model.eps,
            layer=self._layers,
            embedding=_Matrix.of(model.embedding),
            head=_Matrix.of(model.head),
            final_norm=model.final_norm.data_ptr(),
            cos=model.cos.data_ptr(),
            sin=model.sin.data_ptr(),
        )
        self._decoder = self._library.headrace_decoder(ctypes.byref(described), threads)

    def __del__(self) -> None:
        if hasattr(self, "_decoder"):
            self._library.headrace_free(self._decoder)

    def forward(self, token_ids: Sequence[int], chunks: Sequence[NativeChunk], storage: Tensor) -> Tensor:
        """Compute rows laid end to end, writing their keys and values into the pool.

        Args:
            token_ids: of all rows.
            chunks: which sequences and positions the rows are, in order.
            storage: int32 [blocks, layers, kv_heads, 2, block_size * dim / 2], the pool (`native/attention.h`).

        Returns:
            fp32 [rows, hidden] after the final norm.
        """
        model = self._model
        rows = len(token_ids)
        tokens = (_int * rows)(*token_ids)
        tables = [(ctypes.c_int32 * len(chunk.table))(*chunk.table) for chunk in chunks]
        laid, first = (_Chunk * len(chunks))(), 0
        for place, chunk, table in zip(laid, chunks, tables, strict=True):
            place.first, place.rows, place.start = first, chunk.rows, chunk.start
            place.table = ctypes.addressof(table)
            first += chunk.rows
        step = _Step(rows, len(chunks), ctypes.addressof(tokens), laid)
        block_size = storage.shape[-1] * 2 // model.dim
        cache = _Cache(storage.data_ptr(), block_size, len(model.layers), model.kv_heads, model.dim)
        hidden = torch.empty(rows, self._hidden)
        self._library.headrace_forward(
            self._decoder, ctypes.byref(step), ctypes.byref(cache), _pointer(hidden.data_ptr())
        )
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of all tokens: fp32 [n, hidden], contiguous, to fp32 [n, vocab]."""
        out = torch.empty(len(hidden), self._outputs)
        self._library.headrace_logits(
            self._decoder, _pointer(hidden.data_ptr()), _int(len(hidden)), _pointer(out.data_ptr())
        )
        return out


def _layer(layer: NativeLayer) -> _Layer:
    matrices = {name: _Matrix.of(getattr(layer, name)) for name in _MATRICES}
    vectors = {name: getattr(layer, name) for name in _VECTORS}
    pointers = {name: None if vector is None else vector.data_ptr() for name, vector in vectors.items()}
    return _Layer(**matrices, **pointers, window=layer.window)


def _open(library: Path) -> ctypes.CDLL:
    opened = ctypes.CDLL(str(library))
    opened.headrace_decoder.restype = _pointer
    opened.headrace_decoder.argtypes = (_pointer, ctypes.c_int32)
    opened.headrace_free.restype = None
    opened.headrace_free.argtypes = (_pointer,)
    opened.headrace_forward.restype = None
    opened.headrace_forward.argtypes = (_pointer, _pointer, _pointer, _pointer)
    opened.headrace_logits.restype = None
    opened.headrace_logits.argtypes = (_pointer, _pointer, _int, _pointer)
    return opened
