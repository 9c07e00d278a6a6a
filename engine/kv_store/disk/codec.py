"""Blocks as fewer bytes: lossless coding for the tiers where bytes cost more than arithmetic.

What compresses in keys and values is the sign and exponent: neighbours have similar sizes. Mantissas are noise. So a number's bytes
are put into planes (all top bytes together, and so on), each plane a zstd frame of its own.

Ratio (encoded over raw bytes) and MB of raw block per second on one core of an EPYC (Zen 4) machine, KV of SmolLM2-135M over 3,072
tokens of MT-bench prompts, 24 blocks:

    candidate                                 bf16: ratio  encode  decode    fp32: ratio  encode  decode
    zstd 1, no planes                               0.797     678     908          0.933     905    1194
    lz4, no planes                                  1.003    4014    3995          1.004    5090    6525
    blosc2: shuffle + zstd 1                        0.694     319    1121          0.854     776    3308
    blosc2: bit shuffle + lz4                       0.818    1398    2095          0.925    2357    3897
    top plane by deflate (ISA-L), others raw        0.743     679     974          0.886    1144    1500
    top plane by lz4, others raw                    0.838     566    2000          0.937    1183    3625
    top plane by zstd 1, others raw                 0.689     419    1433          0.848    1012    2675
    top plane by tuned zstd, others raw             0.685     923    2313          0.845    2329    3319
    all planes by tuned zstd, checksums: this       0.685     714    1921          0.845    1606    2635

zstd's own level 1 looks for repetitions that are not there. With a hash table of 64 entries and matches of at least 7 bytes it
hardly looks and goes straight to Huffman codes of 128 KiB at a time: twice as fast, and a better ratio. The lower planes do not
compress, and zstd sees that fast; they are zstd frames for the checksums, and because planes of zeros or of fewer bits do compress.

Left out after measuring: rotating the sign out of the exponent's byte (0.001 of the ratio); frames of 16 KiB, a layer of a block
(the same ratio, a quarter slower); differences along tokens (entropy of the top byte 2.7 instead of 2.9 bits for keys, but 3.3
instead of 3.0 for values); exponents relative to their channel's largest (2.4 and 2.6 bits instead of 2.8 and 2.9, 0.03 of the
ratio: not worth a codec that has to know where in a block a channel lies).

CacheGen (Liu et al. 2023, arXiv 2310.07240) codes quantized differences arithmetically; such lossy levels fit behind `Codec`.
"""

import struct
import threading
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import zstandard

Bytes = npt.NDArray[np.uint8]

# Planes by the bytes of a number, lowest first: the type of a part, and how many bits of the number lie below it.
_PLANES: dict[int, tuple[tuple[str, int], ...]] = {
    1: (("u1", 0),),
    2: (("u1", 0), ("u1", 8)),
    4: (("<u2", 0), ("u1", 16), ("u1", 24)),
}


class Codec(Protocol):
    """A way of writing a block that can be undone. May be called from several threads at once; releases the interpreter's lock
    while it works.

    A lossy codec's `name` (including its level) must be part of the key of every block that went through it, so that no request
    that asked for exact results is served such a block. A lossless one's name is only part of the format of what it wrote.

    Attributes:
        name: of the exact format: codecs with the same name decode each other's bytes.
    """

    name: str

    def encode(self, block: Bytes) -> bytes | memoryview:
        """Encode a block: uint8 [n], contiguous. The result may be longer than the block."""
        ...

    def decode(self, data: memoryview, out: Bytes) -> None:
        """Fill `out`, uint8 [n], contiguous; n is that of the block given to `encode`.

        Raises:
            ValueError: `data` is not what `encode` made of n bytes; `out` is undefined.
        """
        ...


class PlanesCodec:
    """Lossless: numbers of `element_bytes` bytes, one zstd frame with a checksum for each plane of their bytes.

    Layout, little-endian: for each plane the length of its frame, uint32; then the frames, lowest plane first. A block that is not
    a whole number of elements is filled up with zeros.

    Args:
        element_bytes: 1 (fp8), 2 (bf16, fp16) or 4 (fp32).

    Raises:
        ValueError: another size.
    """

    def __init__(self, element_bytes: int) -> None:
        if element_bytes not in _PLANES:
            raise ValueError(f"{element_bytes} bytes a number: planes are known for {', '.join(map(str, _PLANES))}")
        self.name = f"planes{element_bytes}-zstd-1"
        self._element = np.dtype(f"<u{element_bytes}")
        self._planes = [(np.dtype(kind), below) for kind, below in _PLANES[element_bytes]]
        self._lengths = struct.Struct(f"<{len(self._planes)}I")
        self._local = threading.local()

    def encode(self, block: Bytes) -> bytes:
        """Encode a block of less than 4 GiB: uint8 [n], contiguous."""
        elements = self._filled_up(block)
        compress = self._tools().compressor.compress
        frames = [compress((elements >> below).astype(kind).data) for kind, below in self._planes]
        return b"".join((self._lengths.pack(*map(len, frames)), *frames))

    def decode(self, data: memoryview, out: Bytes) -> None:
        """Fill `out`, uint8 [n], contiguous.

        Raises:
            ValueError: `data` is damaged, or not what `encode` made of n bytes; `out` is undefined.
        """
        whole = out.nbytes % self._element.itemsize == 0
        elements = out.view(self._element) if whole else np.empty_like(self._filled_up(out))
        planes = self._decoded_planes(data.cast("B"), elements.size)
        np.copyto(elements, next(planes))
        for plane in planes:
            np.left_shift(elements, 8 * plane.itemsize, out=elements)
            np.bitwise_or(elements, plane, out=elements)
        if not whole:
            out[:] = elements.view(np.uint8)[: out.nbytes]

    def _filled_up(self, block: Bytes) -> npt.NDArray[np.unsignedinteger]:
        """[elements] over the block, or over a copy with zeros behind it."""
        lacking = -block.nbytes % self._element.itemsize
        return (np.pad(block, (0, lacking)) if lacking else block).view(self._element)

    def _decoded_planes(self, data: memoryview, elements: int) -> Iterator[npt.NDArray[np.unsignedinteger]]:
        """The planes, top one first: each [elements]."""
        if len(data) < self._lengths.size:
            raise ValueError(f"{len(data)} bytes are too few to be {self.name}")
        lengths = self._lengths.unpack_from(data)
        end = len(data)
        if end != self._lengths.size + sum(lengths):
            raise ValueError(f"frames of {lengths} bytes in {end} bytes of {self.name}")
        for (kind, _), length in zip(reversed(self._planes), reversed(lengths), strict=True):
            frame, end = data[end - length : end], end - length
            yield np.frombuffer(self._decompressed(frame, elements * kind.itemsize), kind)

    def _decompressed(self, frame: memoryview, size: int) -> bytes:
        try:
            found = zstandard.frame_content_size(frame)
            if found != size:  # before decompressing, which takes as much memory as the frame says
                raise ValueError(f"a plane of {self.name} has {found} bytes instead of {size}")
            return self._tools().decompressor.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ValueError(f"damaged {self.name}: {error}") from error

    def _tools(self) -> "_Tools":
        """This thread's own."""
        tools: _Tools | None = getattr(self._local, "tools", None)
        if tools is None:
            tools = self._local.tools = _Tools()
        return tools


class _Tools:
    """zstandard's objects: each serves one thread at a time."""

    def __init__(self) -> None:
        parameters = zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST,
            min_match=7,
            hash_log=6,
            window_log=17,
            target_length=0,  # more than 0 would leave the Huffman codes out
            write_content_size=True,
            write_checksum=True,
        )
        self.compressor = zstandard.ZstdCompressor(compression_params=parameters)
        self.decompressor = zstandard.ZstdDecompressor()
