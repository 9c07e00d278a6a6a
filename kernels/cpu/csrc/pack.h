// GGUF's blocks to the tiles of `formats.h`, and back to fp32. Bits are moved, never rounded.
//
// A type's `unpack` gives the columns of one block, one byte each, as `Format::quants` will have them, and `place_header` writes what belongs
// to one output into a record; then `place_group` writes the quants of 16 outputs. Layouts of blocks: ggml's ggml-common.h and, in words, the
// `gguf` package's quants.py.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <numeric>
#include <vector>

#include "formats.h"

namespace headrace {

inline void copy_half(uint8_t* to, int lane, const uint8_t* from) { std::memcpy(to + 2 * lane, from, 2); }

// 16 bytes with two columns each: those in the low halves, then those in the high ones.
inline void halves(const uint8_t* from, uint8_t* q) {
  for (int i = 0; i < 16; i++) q[i] = from[i] & 15, q[16 + i] = from[i] >> 4;
}

// --- types of 32 columns -------------------------------------------------------------------------------------------------

template <bool FIFTH, int HALVES>
struct PlainBlock {
  static constexpr int BYTES_OF = 2 * HALVES + (FIFTH ? 4 : 0) + 16;

  static void unpack(const uint8_t* __restrict block, uint8_t* __restrict q) {
    halves(block + BYTES_OF - 16, q);
    if constexpr (FIFTH) {
      const uint32_t bits = load<uint32_t>(block + 2 * HALVES);
      for (int i = 0; i < GROUP; i++) q[i] |= (bits >> i & 1) << 4;
    }
  }
  static void place_header(const uint8_t* block, int lane, uint8_t* record) {
    for (int i = 0; i < HALVES; i++) copy_half(record + 32 * i, lane, block + 2 * i);
  }
};

struct ByteBlock {  // Q8_0
  static constexpr int BYTES_OF = 34;

  static void unpack(const uint8_t* __restrict block, uint8_t* __restrict q) {
    for (int i = 0; i < GROUP; i++) q[i] = block[2 + i] ^ 0x80;
  }
  static void place_header(const uint8_t* block, int lane, uint8_t* record) { copy_half(record, lane, block); }
};

struct ExponentBlock {  // MXFP4
  static constexpr int BYTES_OF = 17;

  static void unpack(const uint8_t* __restrict block, uint8_t* __restrict q) { halves(block + 1, q); }
  static void place_header(const uint8_t* block, int lane, uint8_t* record) { record[lane] = block[0]; }
};

// --- types of 256 columns ------------------------------------------------------------------------------------------------

template <bool FIFTH>
struct SixBitBlock {  // Q4_K, Q5_K
  static constexpr int BYTES_OF = FIFTH ? 176 : 144;

  static void unpack(const uint8_t* __restrict block, uint8_t* __restrict q) {
    const uint8_t *high = block + 16, *low = high + (FIFTH ? 32 : 0);
    for (int g = 0; g < 8; g++)
      for (int i = 0; i < GROUP; i++) {
        q[GROUP * g + i] = low[GROUP * (g / 2) + i] >> 4 * (g % 2) & 15;
        if constexpr (FIFTH) q[GROUP * g + i] |= (high[i] >> g & 1) << 4;
      }
  }
  // Twelve bytes with eight scales and eight minima of six bits: the low four of the last four of each share bytes 8 to 11, their
  // upper two are above the first four's.
  static void place_header(const uint8_t* block, int lane, uint8_t* record) {
    copy_half(record, lane, block);
    copy_half(record + 32, lane, block + 2);
    const uint32_t first = load<uint32_t>(block + 4), second = load<uint32_t>(block + 8), third = load<uint32_t>(block + 12);
    const uint32_t scales[] = {first & 0x3f3f3f3f, (third & 0x0f0f0f0f) | (first >> 6 & 0x03030303) << 4};
    const uint32_t minima[] = {second & 0x3f3f3f3f, (third >> 4 & 0x0f0f0f0f) | (second >> 6 & 0x03030303) << 4};
    for (int g = 0; g < 8; g++) {
      uint8_t* to = record + 64 + 32 * g + lane;
      to[0] = (uint8_t)(scales[g / 4] >> 8 * (g % 4));
      to[16] = (uint8_t)(minima[g / 4] >> 8 * (g % 4));
    }
  }
};

struct IQ4_XSBlock {
  static constexpr int BYTES_OF = 136;

  static void unpack(const uint8_t* __restrict block, uint8_t* __restrict q) {
    for (int g = 0; g < 8; g++) halves(block + 8 + 16 * g, q + GROUP * g);
  }
  static void place_header(const uint8_t* block, int lane, uint8_t* record) {
    copy_half(record, lane, block);
    const uint16_t high = load<uint16_t>(block + 2);
    for (int g = 0; g < 8; g++) {
      const int low = block[4 + g / 2] >> 4 * (g % 2) & 15;
      record[32 + 16 * g + lane] = (uint8_t)((low | (high >> 2 * g & 3) << 4) - 32);
    }
  }
};

struct Q6_KBlock {
  static constexpr int BYTES_OF = 210;

  static void unpack(const uint8_t* __restrict block, uint8_t* __restrict q) {
    for (int n = 0; n < 2; n++) {
      const uint8_t *low = block + 64 * n, *high = block + 128 + 32 * n;
      for (int part = 0; part < 4; part++)
        for (int i = 0; i < GROUP; i++)
          q[128 * n + GROUP * part + i] =
              (low[GROUP * (part % 2) + i] >> 4 * (part / 2) & 15) | (high[i] >> 2 * part & 3) << 4;
    }
  }
  static void place_header(const uint8_t* block, int lane, uint8_t* record) {
    copy_half(record, lane, block + 208);
    for (int i = 0; i < 16; i++) record[32 + 16 * i + lane] = block[192 + i];
  }
};

// 64 bytes with four columns each, of 128 columns first those in the lowest bits.
inline void quarters(const uint8_t* from, uint8_t* q) {
  for (int g = 0; g < 8; g++)
    for (int i = 0; i < GROUP; i++) q[GROUP * g + i] = from[GROUP * (g / 4) + i] >> 2 * (g % 4) & 3;
}

struct Q2_KBlock {
  static constexpr int BYTES_OF = 84;

  static void unpack(const uint8_t* __restrict block, uint8_t* __restrict q) { quarters(block + 16, q); }
  static void place_header(const uint8_t* block, int lane, uint8_t* record) {
    copy_half(record, lane, block + 80);
    copy_half(record + 32, lane, block + 82);
    for (int i = 0; i < 16; i++) record[64 + 16 * i + lane] = block[i];
  }
};

struct Q3_KBlock {
  static constexpr int BYTES_OF = 110;

  static void unpack(const uint8_t* __restrict block, uint8_t* __restrict q) {
    quarters(block + 32, q);
    for (int g = 0; g < 8; g++)
      for (int i = 0; i < GROUP; i++) q[GROUP * g + i] |= (block[i] >> g & 1) << 2;
  }
  static void place_header(const uint8_t* block, int lane, uint8_t* record) {
    copy_half(record, lane, block + 108);
    const uint8_t *low = block + 96, *high = block + 104;
    for (int i = 0; i < 16; i++) {
      const int scale = (low[i % 8] >> 4 * (i / 8) & 15) | (high[i % 4] >> 2 * (i / 4) & 3) << 4;
      record[32 + 16 * i + lane] = (uint8_t)(scale - 32);
    }
  }
};

// The blocks of a file that become records of a format.
template <class Format>
struct BlockOf;
template <> struct BlockOf<Q4_0Format> : PlainBlock<false, 1> {};
template <> struct BlockOf<Q4_1Format> : PlainBlock<false, 2> {};
template <> struct BlockOf<Q5_0Format> : PlainBlock<true, 1> {};
template <> struct BlockOf<Q5_1Format> : PlainBlock<true, 2> {};
template <> struct BlockOf<Q8_0Format> : ByteBlock {};
template <> struct BlockOf<IQ4_NLFormat> : PlainBlock<false, 1> {};
template <> struct BlockOf<MXFP4Format> : ExponentBlock {};
template <> struct BlockOf<Q2_KFormat> : Q2_KBlock {};
template <> struct BlockOf<Q3_KFormat> : Q3_KBlock {};
template <> struct BlockOf<Q4_KFormat> : SixBitBlock<false> {};
template <> struct BlockOf<Q5_KFormat> : SixBitBlock<true> {};
template <> struct BlockOf<Q6_KFormat> : Q6_KBlock {};
template <> struct BlockOf<IQ4_XSFormat> : IQ4_XSBlock {};

// --- quants into a group ---------------------------------------------------------------------------------------------------

// One group's columns of 16 outputs, 32 bytes that are `stride` bytes apart: vector j of `quads` has columns 4j .. 4j+3 of all of them.
inline void transpose(const uint8_t* q, int64_t stride, u32x16* quads) {
  for (int half = 0; half < 2; half++) {
    __m256i a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = load<__m256i>(q + (8 * half + i) * stride);
    for (int i = 0; i < 8; i += 2) b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]), b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    for (int i = 0; i < 8; i += 4)
      for (int k = 0; k < 2; k++)
        a[i + 2 * k] = _mm256_unpacklo_epi64(b[i + k], b[i + k + 2]), a[i + 2 * k + 1] = _mm256_unpackhi_epi64(b[i + k], b[i + k + 2]);
    for (int i = 0; i < 4; i++) {
      store((uint8_t*)(quads + i) + 32 * half, _mm256_permute2x128_si256(a[i], a[i + 4], 0x20));
      store((uint8_t*)(quads + i + 4) + 32 * half, _mm256_permute2x128_si256(a[i], a[i + 4], 0x31));
    }
  }
}

inline void place_nibbles(const u32x16* q, uint8_t* at) {
  for (int v = 0; v < 4; v++) store(at + 64 * v, (q[v] & 0x0f0f0f0fu) | (q[v + 4] & 0x0f0f0f0fu) << 4);
}
inline void place_pairs(const u32x16* q, int from, uint8_t* at) {
  for (int v = 0; v < 2; v++) {
    u32x16 whole{};
    for (int n = 0; n < 4; n++) whole = whole | (q[4 * v + n] >> from & 0x03030303u) << 2 * n;
    store(at + 64 * v, whole);
  }
}
inline void place_single(const u32x16* q, int from, uint8_t* at) {
  u32x16 whole{};
  for (int n = 0; n < 8; n++) whole = whole | (q[n] >> from & 0x01010101u) << n;
  store(at, whole);
}

template <class Format>
inline void place_group(const u32x16* q, uint8_t* at) {
  if constexpr (Format::EACH == BYTES) {
    for (int v = 0; v < 8; v++) store(at + 64 * v, q[v]);
  } else if constexpr (Format::EACH == PAIRS || Format::EACH == PAIRS + SINGLE) {
    place_pairs(q, 0, at);
    if constexpr (Format::EACH > PAIRS) place_single(q, 2, at + PAIRS);
  } else {
    place_nibbles(q, at);
    if constexpr (Format::EACH == NIBBLES + PAIRS) place_pairs(q, 4, at + NIBBLES);
    if constexpr (Format::EACH == NIBBLES + SINGLE) place_single(q, 4, at + NIBBLES);
  }
}

// Which row is that of an output. llama.cpp stores the two halves of a head, `half` rows each, with their rows side by side; 0: in order.
inline int64_t stored_row(int64_t output, int64_t half) {
  if (half == 0) return output;
  const int64_t in_head = output % (2 * half);
  return output - in_head + 2 * (in_head % half) + in_head / half;
}

// A whole matrix: `rows` [outputs] are `stride` bytes apart; `out` has room for all tiles. What the last tile has too many is zero.
template <class Format>
inline void pack(const uint8_t* rows, int64_t stride, int64_t outputs, int64_t columns, uint8_t* out, int64_t half = 0) {
  using Block = BlockOf<Format>;
  constexpr int RECORD = record_bytes<Format>();
  alignas(64) uint8_t q[TILE][Format::COLUMNS];
  for (int64_t first = 0; first < outputs; first += TILE) {
    const int lanes = (int)std::min<int64_t>(TILE, outputs - first);
    if (lanes < TILE) std::memset(q, 0, sizeof q);
    for (int64_t at = 0; at < columns / Format::COLUMNS; at++, out += RECORD) {
      if (lanes < TILE) std::memset(out, 0, Format::HEADER);
      for (int lane = 0; lane < lanes; lane++) {
        const uint8_t* block = rows + stored_row(first + lane, half) * stride + at * Block::BYTES_OF;
        Block::unpack(block, q[lane]);
        Block::place_header(block, lane, out);
      }
      for (int g = 0; g < Format::COLUMNS / GROUP; g++) {
        u32x16 quads[GROUP / 4];
        transpose(q[0] + g * GROUP, Format::COLUMNS, quads);
        place_group<Format>(quads, out + Format::HEADER + g * Format::EACH);
      }
    }
  }
}

// --- from a file -----------------------------------------------------------------------------------------------------------

constexpr int64_t READ_AT_ONCE = 256 << 10;  // bytes: what is read is still in a core's cache when it is packed
constexpr int64_t CUT_OFF = -1;

// A matrix that begins `offset` bytes into a file, its rows one after the other; `half` as in `stored_row`.
struct FileMatrix {
  int64_t kind, outputs, columns, half, offset;
  uint8_t* out;
};

// Fill `to`. Returns 0, what `errno` says, or CUT_OFF if the file ends before.
inline int64_t read_all(int file, uint8_t* to, int64_t size, int64_t offset) {
  while (size > 0) {
    const ssize_t count = pread(file, to, (size_t)size, offset);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return count < 0 ? errno : CUT_OFF;
    to += count, size -= count, offset += count;
  }
  return 0;
}

// Pack a matrix as it is read, some tiles and whole heads at a time; returns what `read_all` does.
template <class Format>
inline int64_t pack_file(int file, const FileMatrix& from, std::vector<uint8_t>& rows) {
  const int64_t blocks = from.columns / Format::COLUMNS, stride = blocks * BlockOf<Format>::BYTES_OF;
  const int64_t unit = from.half ? std::lcm<int64_t>(2 * from.half, TILE) : TILE;
  const int64_t step = std::max<int64_t>(1, READ_AT_ONCE / (stride * unit)) * unit;
  rows.resize(std::max<size_t>(rows.size(), step * stride));
  for (int64_t first = 0; first < from.outputs; first += step) {
    const int64_t count = std::min(step, from.outputs - first);
    if (const int64_t failed = read_all(file, rows.data(), count * stride, from.offset + first * stride)) return failed;
    uint8_t* out = from.out + first / TILE * blocks * record_bytes<Format>();
    pack<Format>(rows.data(), stride, count, from.columns, out, from.half);
  }
  return 0;
}

}  // namespace headrace
