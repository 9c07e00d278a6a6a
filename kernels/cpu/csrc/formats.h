// How weights are stored: GGUF's block types, rearranged so that sixteen outputs are computed side by side.
//
// A matrix lies as tiles of 16 outputs; of a tile, record after record, each with 32 columns (one group) or, for types with
// super-blocks, 256 (eight groups). A record begins with the scales of its 16 outputs, in the bits in which the file has them
// (six-bit ones in a byte each); then come its groups' quants:
//     nibbles  4 x 64 bytes; dword i of vector v holds columns 4v .. 4v+3 (low halves) and 16+4v .. 16+4v+3 (high halves) of output i
//     pairs    2 x 64 bytes; bits 2n, 2n+1 of byte k of dword i of vector v are of column 16v + 4n + k
//     single   64 bytes; bit n of byte k of dword i is of column 4n + k
//     bytes    8 x 64 bytes; dword i of vector v holds columns 4v .. 4v+3
// so that four columns of sixteen outputs are one vector of unsigned bytes after a shift and a mask. What a weight is worth is
//     scale * (q - ZERO) + offset
// with the scale of its output and SUB columns, and (MIN) an offset: both exact in fp32, so weights are the file's to the last bit.
//
// | type   | bits a weight, here and in the file | record                                                  |
// |--------|-------------------------------------|---------------------------------------------------------|
// | Q4_0   | 4.5, 4.5    | d fp16[16], nibbles                                                             |
// | Q4_1   | 5, 5        | d, m fp16[16], nibbles                                                          |
// | Q5_0   | 5.5, 5.5    | d, nibbles, single                                                              |
// | Q5_1   | 6, 6        | d, m, nibbles, single                                                           |
// | Q8_0   | 8.5, 8.5    | d, bytes (plus 128)                                                             |
// | IQ4_NL | 4.5, 4.5    | d, nibbles that stand for the values of a table                                 |
// | MXFP4  | 4.25, 4.25  | exponent uint8[16], nibbles that stand for the values of a table                |
// | Q2_K   | 2.625, 2.625| d, dmin, (scale, min) 4 bits each [16 subs][16], 8 x pairs                      |
// | Q3_K   | 3.5625, 3.4375 | d, scale int8 [16 subs][16], 8 x (pairs, single)                             |
// | Q4_K   | 4.625, 4.5  | d, dmin, 8 x (scale uint8[16], min uint8[16]), 8 x nibbles                      |
// | Q5_K   | 5.625, 5.5  | d, dmin, 8 x (scale, min), 8 x (nibbles, single)                                |
// | Q6_K   | 6.5625, 6.5625 | d, scale int8 [16 subs][16], 8 x (nibbles, pairs)                            |
// | IQ4_XS | 4.3125, 4.25 | d, 8 x scale int8[16], 8 x nibbles that stand for the values of IQ4_NL's table |
#pragma once

#include <algorithm>

#include "simd.h"

namespace headrace {

constexpr int GROUP = 32;
constexpr int TILE = 16;
constexpr int SUPER = 256;
constexpr int NIBBLES = 256, PAIRS = 128, SINGLE = 64, BYTES = 512;  // bytes of one group of a tile

// The numbers are the places in `FORMATS` of kernels/cpu/packing.py.
enum Kind : int64_t { Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS, KINDS };

// Columns 4 j .. 4 j + 3 of one group.
inline u32x16 nibbles(const uint8_t* at, int j) {
  const u32x16 packed = load<u32x16>(at + 64 * (j % 4));
  return (j < 4 ? packed : packed >> 4) & 0x0f0f0f0fu;
}
// The bits of `pairs`, in place above TO lower bits.
template <int TO>
inline u32x16 pairs(const uint8_t* at, int j) {
  const u32x16 packed = load<u32x16>(at + 64 * (j / 4));
  const int from = 2 * (j % 4);
  return (from > TO ? packed >> (from - TO) : packed << (TO - from)) & (0x03030303u << TO);
}
template <int TO>
inline u32x16 single(const uint8_t* at, int j) {
  const u32x16 packed = load<u32x16>(at);
  return (j > TO ? packed >> (j - TO) : packed << (TO - j)) & (0x01010101u << TO);
}

// Nibbles, with or without a fifth bit.
template <bool FIFTH>
inline u32x16 nibbles_or_fives(const uint8_t* group, int j) {
  if constexpr (FIFTH) return nibbles(group, j) | single<4>(group + NIBBLES, j);
  return nibbles(group, j);
}

// --- types of 32 columns -----------------------------------------------------------------------------------------------

template <int ZERO_POINT, bool OFFSET, bool FIFTH>
struct Plain {
  static constexpr int COLUMNS = GROUP, SUB = GROUP, BITS = FIFTH ? 5 : 4, ZERO = ZERO_POINT;
  static constexpr bool MIN = OFFSET;
  static constexpr int HEADER = MIN ? 64 : 32, EACH = NIBBLES + (FIFTH ? SINGLE : 0);

  static u32x16 quants(const uint8_t* group, int j) { return nibbles_or_fives<FIFTH>(group, j); }
  static f32x16 scale(const uint8_t* record, int, int) { return half(record); }
  static f32x16 offset(const uint8_t* record, int, int) { return half(record + 32); }
};
struct Q4_0Format : Plain<8, false, false> {};
struct Q4_1Format : Plain<0, true, false> {};
struct Q5_0Format : Plain<16, false, true> {};
struct Q5_1Format : Plain<0, true, true> {};

struct Q8_0Format {
  static constexpr int COLUMNS = GROUP, SUB = GROUP, BITS = 8, ZERO = 128;
  static constexpr bool MIN = false;
  static constexpr int HEADER = 32, EACH = BYTES;

  static u32x16 quants(const uint8_t* group, int j) { return load<u32x16>(group + 64 * j); }
  static f32x16 scale(const uint8_t* record, int, int) { return half(record); }
};

// llama.cpp's table of IQ4_NL, plus 128.
alignas(16) constexpr uint8_t IQ4_VALUES[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

struct IQ4Values {  // IQ4_NL and IQ4_XS
  static constexpr int SUB = GROUP, BITS = 8, ZERO = 128;
  static constexpr bool MIN = false;
  static constexpr int EACH = NIBBLES;

  static u32x16 quants(const uint8_t* group, int j) { return look_up(IQ4_VALUES, nibbles(group, j)); }
};
struct IQ4_NLFormat : IQ4Values {
  static constexpr int COLUMNS = GROUP, HEADER = 32;

  static f32x16 scale(const uint8_t* record, int, int) { return half(record); }
};

// Twice the values of OCP's E2M1 (Microscaling Formats 1.0, table 5), plus 12.
alignas(16) constexpr uint8_t E2M1_VALUES[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

struct MXFP4Format {
  static constexpr int COLUMNS = GROUP, SUB = GROUP, BITS = 5, ZERO = 12;
  static constexpr bool MIN = false;
  static constexpr int HEADER = 16, EACH = NIBBLES;

  static u32x16 quants(const uint8_t* group, int j) { return look_up(E2M1_VALUES, nibbles(group, j)); }
  // 2^(e - 128), half of OCP's scale; the two smallest are no normal numbers.
  static f32x16 scale(const uint8_t* record, int, int) {
    const i32x16 e = widen(load<u8x16>(record));
    const i32x16 small = select(e == 0, i32x16{} + 0x00200000, i32x16{} + 0x00400000);
    return (f32x16)select(e < 2, small, (e - 1) << 23);
  }
};

// --- types of 256 columns ----------------------------------------------------------------------------------------------

template <bool FIFTH>
struct SixBitScales {  // Q4_K and Q5_K
  static constexpr int COLUMNS = SUPER, SUB = GROUP, BITS = FIFTH ? 5 : 4, ZERO = 0;
  static constexpr bool MIN = true;
  static constexpr int HEADER = 64 + 8 * 32, EACH = NIBBLES + (FIFTH ? SINGLE : 0);

  static u32x16 quants(const uint8_t* group, int j) { return nibbles_or_fives<FIFTH>(group, j); }
  static f32x16 scale(const uint8_t* record, int g, int) {
    return half(record) * to_float(widen(load<u8x16>(record + 64 + 32 * g)));
  }
  static f32x16 offset(const uint8_t* record, int g, int) {
    return -(half(record + 32) * to_float(widen(load<u8x16>(record + 80 + 32 * g))));
  }
};
struct Q4_KFormat : SixBitScales<false> {};
struct Q5_KFormat : SixBitScales<true> {};

struct IQ4_XSFormat : IQ4Values {
  static constexpr int COLUMNS = SUPER, HEADER = 32 + 8 * 16;

  static f32x16 scale(const uint8_t* record, int g, int) {
    return half(record) * to_float(widen(load<i8x16>(record + 32 + 16 * g)));
  }
};

template <int ZERO_POINT, int WIDTH>
struct SignedScales {  // Q3_K and Q6_K: a scale for each 16 columns
  static constexpr int COLUMNS = SUPER, SUB = 16, BITS = WIDTH, ZERO = ZERO_POINT;
  static constexpr bool MIN = false;
  static constexpr int HEADER = 32 + 16 * 16, EACH = WIDTH == 6 ? NIBBLES + PAIRS : PAIRS + SINGLE;

  static u32x16 quants(const uint8_t* group, int j) {
    if constexpr (WIDTH == 6) return nibbles(group, j) | pairs<4>(group + NIBBLES, j);
    return pairs<0>(group, j) | single<2>(group + PAIRS, j);
  }
  static f32x16 scale(const uint8_t* record, int g, int sub) {
    return half(record) * to_float(widen(load<i8x16>(record + 32 + 16 * (2 * g + sub))));
  }
};
struct Q3_KFormat : SignedScales<4, 3> {};
struct Q6_KFormat : SignedScales<32, 6> {};

struct Q2_KFormat {
  static constexpr int COLUMNS = SUPER, SUB = 16, BITS = 2, ZERO = 0;
  static constexpr bool MIN = true;
  static constexpr int HEADER = 64 + 16 * 16, EACH = PAIRS;

  static u32x16 quants(const uint8_t* group, int j) { return pairs<0>(group, j); }
  static f32x16 scale(const uint8_t* record, int g, int sub) { return half(record) * to_float(both(record, g, sub) & 15); }
  static f32x16 offset(const uint8_t* record, int g, int sub) {
    return -(half(record + 32) * to_float(both(record, g, sub) >> 4));
  }
  static i32x16 both(const uint8_t* record, int g, int sub) { return widen(load<u8x16>(record + 64 + 16 * (2 * g + sub))); }
};

// --- all of them -------------------------------------------------------------------------------------------------------

template <class Format>
constexpr int record_bytes() {
  return Format::HEADER + Format::COLUMNS / GROUP * Format::EACH;
}

// Calls with(Format{}) for the format of that kind.
template <class With>
inline auto with_format(int64_t kind, With&& with) {
  switch (kind) {
    case Q4_0: return with(Q4_0Format{});
    case Q5_0: return with(Q5_0Format{});
    case Q5_1: return with(Q5_1Format{});
    case Q8_0: return with(Q8_0Format{});
    case IQ4_NL: return with(IQ4_NLFormat{});
    case MXFP4: return with(MXFP4Format{});
    case Q2_K: return with(Q2_KFormat{});
    case Q3_K: return with(Q3_KFormat{});
    case Q4_K: return with(Q4_KFormat{});
    case Q5_K: return with(Q5_KFormat{});
    case Q6_K: return with(Q6_KFormat{});
    case IQ4_XS: return with(IQ4_XSFormat{});
    default: return with(Q4_1Format{});
  }
}

// Columns that share a scale.
inline int columns_of_scale(int64_t kind) {
  return with_format(kind, [](auto format) { return decltype(format)::SUB; });
}

struct Tile {
  const uint8_t* records;
  const uint8_t* next;  // the tile whose turn comes after this one, most likely: asked for by several rows
};

struct Matrix {
  const uint8_t* records;
  int64_t outputs;  // rows of the matrix; the last tile is padded with zero weights
  int64_t columns;
  int64_t kind;
  int64_t tile_bytes;

  int tiles() const { return (int)((outputs + TILE - 1) / TILE); }
  int groups() const { return (int)(columns / GROUP); }
  // Tile `index`; `skip` tiles on lies what will be read next.
  Tile tile(int64_t index, int64_t skip = 0) const {
    const int64_t next = std::min<int64_t>(index + skip, tiles() - 1);
    return {records + index * tile_bytes, records + next * tile_bytes};
  }
};

// The weights of one group of a tile: out[4 j + k] has column 4 j + k of all outputs.
template <class Format>
inline void weights(const uint8_t* record, int g, f32x16* out) {
  const uint8_t* group = record + Format::HEADER + g * Format::EACH;
  for (int j = 0; j < GROUP / 4; j++) {
    const u32x16 quads = Format::quants(group, j);
    const int sub = 4 * j / Format::SUB;
    for (int k = 0; k < 4; k++) {
      const f32x16 whole = to_float((i32x16)(quads >> (8 * k) & 255u) - Format::ZERO);
      out[4 * j + k] = Format::scale(record, g, sub) * whole;
      if constexpr (Format::MIN) out[4 * j + k] += Format::offset(record, g, sub);
    }
  }
}

}  // namespace headrace
