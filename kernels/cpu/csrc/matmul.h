// Products of int8 activations with 4- and 8-bit weights, over groups of 32 columns.
//
// An activation is s * x, x in -127..127, s for each row and group. A weight is
//     8 bits: d * (q - 128), d for each output and group
//     4 bits: D * (a * (q - 8) + b), D for each output, a and b (int16) for each output and group
// (packing.py makes the latter of Q4_0 and Q4_1), so that one group of one output is
//     8 bits: d s * (sum of q x - 128 sum of x)
//     4 bits: D s * (a * (sum of q x - 8 sum of x) + b * (sum of x)), the first sum within 16 bits: 8 * 127 * 32 = 32512
// with integer sums: exact, whatever else is in the batch. Groups are added in ascending order for any number of rows.
//
// Weights lie as tiles of 16 outputs; of a tile, group after group, one record (read once, front to back, at any number of rows):
//     4 bits: (a, b) int16[16][2] | 4 x 64 bytes; dword i of vector j holds columns 4j..4j+3 (low halves) and
//             16 + 4j .. 16 + 4j+3 (high halves) of output i                                                   320 bytes
//     8 bits: d fp16[16] | 8 x 64 bytes; dword i of vector j holds columns 4j..4j+3 of output i                544 bytes
//
// Floor: one row reads 20 (34) bytes for each 32 weights. R rows do 8 R vector products of int8 for each record and, on the same
// two multipliers, 2 R more (a and b; s), so at best 8 of 10 slots are int8 products. Additions and conversions have other units.
#pragma once

#include <algorithm>

#include "simd.h"

namespace headrace {

constexpr int GROUP = 32;
constexpr int TILE = 16;
// Rows and tiles computed at once: their ROWS * TILES integer sums, TILES vectors of weights and one of activations fill the
// vector registers (32 of 64 bytes, or 16 of 32), and each vector loaded serves several products.
#if defined(__AVX512F__)
constexpr int ROWS = 4, TILES = 4;
#else
constexpr int ROWS = 3, TILES = 2;
#endif
constexpr int AHEAD = 4096;  // bytes asked for in advance by a single row, which reads one tile after the other

struct Tile {
  const uint8_t* records;
  const float* steps;
  const uint8_t* next;  // the tile whose turn comes after this one, most likely: asked for by several rows
};

struct Matrix {
  const uint8_t* records;
  const float* steps;  // D [tiles * 16], with 4 bits
  int64_t outputs;     // rows of the matrix; the last tile is padded with zero weights
  int64_t columns;
  int64_t bits;

  int tiles() const { return (int)((outputs + TILE - 1) / TILE); }
  int groups() const { return (int)(columns / GROUP); }
  int record() const { return bits == 4 ? 320 : 544; }
  // Tile `index`; `skip` tiles on lies what will be read next.
  Tile tile(int64_t index, int64_t skip = 0) const {
    const int64_t size = groups() * record(), next = std::min<int64_t>(index + skip, tiles() - 1);
    return {records + index * size, steps + index * TILE, records + next * size};
  }
};

// What one group of one row's activations needs beside its bytes.
struct Scale {
  float scale;        // s
  int32_t upper;      // sum of x, in the upper 16 bits
  int32_t zero[2];    // -8 and -128 times the sum of x: what a weight's zero point adds
};

// Rows of quantized activations: x[row * columns + column], scales[row * columns / 32 + group].
struct Activations {
  int8_t* x;
  Scale* scales;
  int64_t columns;

  int8_t* row(int64_t r) const { return x + r * columns; }
  Scale* scale(int64_t r) const { return scales + r * (columns / GROUP); }
  Activations from(int64_t r) const { return {row(r), scale(r), columns}; }
};

// The largest magnitude; NaN if any is NaN or infinite: what is not finite must come out again as the row's result. Bits of
// magnitudes compare like the magnitudes themselves, infinity and NaN above all others.
inline float magnitude(f32x16 a, f32x16 b) {
  const i32x16 x = (i32x16)a & 0x7fffffff, y = (i32x16)b & 0x7fffffff;
  const int32_t most = largest(select(x > y, x, y));
  return most < 0x7f800000 ? load<float>(&most) : __builtin_nanf("");
}

// Quantize 32 activations: s is the largest magnitude / 127.
inline void quantize(f32x16 a, f32x16 b, int8_t* x, Scale* scale) {
  float most = magnitude(a, b);
  float inverse = most > 0 ? 127.0f / most : 0.0f;
  i32x16 qa = to_int(a * splat(inverse)), qb = to_int(b * splat(inverse));
  store(x, narrow(qa));
  store(x + TILE, narrow(qb));
  int32_t total = sum(qa + qb);
  scale->scale = most / 127.0f;
  scale->upper = (int32_t)((uint32_t)total << 16);
  scale->zero[0] = -8 * total;
  scale->zero[1] = -128 * total;
}

// Columns 4 j .. 4 j + 3 of one group of 16 outputs.
template <int BITS>
inline u32x16 quants(const uint8_t* record, int j) {
  if constexpr (BITS == 8) return load<u32x16>(record + 32 + 64 * j);
  u32x16 packed = load<u32x16>(record + 64 + 64 * (j % 4));
  return (j < 4 ? packed : packed >> 4) & 0x0f0f0f0fu;
}

// out[r * T + t] = outputs of tiles[t] for row first + r.
template <int BITS, int R, int T, bool ASK>
inline void product(const Tile* tiles, const Activations& in, int64_t first, f32x16* out) {
  constexpr int RECORD = BITS == 4 ? 320 : 544;
  const int groups = (int)(in.columns / GROUP);
  const int8_t* x = in.row(first);
  const Scale* scales = in.scale(first);
  f32x16 sums[R][T];
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) sums[r][t] = f32x16{};
  for (int g = 0; g < groups; g++, x += GROUP, scales++) {
    if constexpr (ASK && T == 1) prefetch(tiles[0].records + g * RECORD + AHEAD, RECORD);
    for (int t = 0; t < T && ASK && T > 1; t++) prefetch(tiles[t].next + g * RECORD, RECORD);
    i32x16 dot[R][T];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) dot[r][t] = i32x16{} + scales[r * groups].zero[BITS == 8];
#pragma GCC unroll 8
    for (int j = 0; j < GROUP / 4; j++) {
      u32x16 w[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) w[t] = quants<BITS>(tiles[t].records + g * RECORD, j);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const int32_t quad = load<int32_t>(x + r * in.columns + 4 * j);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) dot[r][t] = dot4<BITS>(dot[r][t], w[t], quad);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      const uint8_t* record = tiles[t].records + g * RECORD;
      const u32x16 factors = BITS == 4 ? load<u32x16>(record) : u32x16{};
      const f32x16 d = BITS == 8 ? half(record) : f32x16{};
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const Scale& s = scales[r * groups];
        if constexpr (BITS == 4) sums[r][t] = fma(to_float(dot2(dot[r][t], s.upper, factors)), splat(s.scale), sums[r][t]);
        else sums[r][t] = fma(to_float(dot[r][t]), d * splat(s.scale), sums[r][t]);
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) out[r * T + t] = BITS == 4 ? sums[r][t] * load<f32x16>(tiles[t].steps) : sums[r][t];
}

template <int BITS, int T, bool ASK, int R = ROWS>
inline void product(const Tile* tiles, const Activations& in, int64_t first, int rows, f32x16* out) {
  if (rows == R) return product<BITS, R, T, ASK>(tiles, in, first, out);
  if constexpr (R > 1) product<BITS, T, ASK, R - 1>(tiles, in, first, rows, out);
}

template <int T, bool ASK>
inline void product(int64_t bits, const Tile* tiles, const Activations& in, int64_t first, int rows, f32x16* out) {
  if (bits == 4) product<4, T, ASK>(tiles, in, first, rows, out);
  else product<8, T, ASK>(tiles, in, first, rows, out);
}

// `multiply` for T tiles. The rows are cut evenly into at most ROWS; the first cut asks for the weights that come next.
template <int T, class Emit>
inline void multiply(int64_t bits, const Tile* tiles, int first_tile, const Activations& in, int64_t rows, Emit&& emit) {
  f32x16 out[ROWS * T];
  const int64_t cuts = (rows + ROWS - 1) / ROWS;
  for (int64_t cut = 0; cut < cuts; cut++) {
    const int64_t first = rows * cut / cuts, last = rows * (cut + 1) / cuts;
    if (cut == 0) product<T, true>(bits, tiles, in, first, (int)(last - first), out);
    else product<T, false>(bits, tiles, in, first, (int)(last - first), out);
    for (int64_t r = first; r < last; r++)
      for (int i = 0; i < T; i++) emit(r, first_tile + i, out[(r - first) * T + i]);
  }
}

// Calls emit(row, tile, outputs) for `count` tiles, all of `bits` bits, and all rows. One row is bound by reading its weights, which a
// tile after the other reads best; more rows take TILES tiles together.
template <class Emit>
inline void multiply(int64_t bits, const Tile* tiles, int count, const Activations& in, int64_t rows, Emit&& emit) {
  int t = 0;
  for (; rows > 1 && t + TILES <= count; t += TILES) multiply<TILES>(bits, tiles + t, t, in, rows, emit);
  for (; t < count; t++) multiply<1>(bits, tiles + t, t, in, rows, emit);
}

}  // namespace headrace
