// Products of int8 activations with 4- and 8-bit weights, over groups of 32 columns.
//
// A weight is d * q + m (Q4_0, Q4_1: q in 0..15) or d * (q - 128) (Q8_0, stored with 128 added), d and m for each row and
// group; an activation is s * x, x in -127..127, s for each row and group. So one group of one output is
//     d s (sum of q x) + m s (sum of x)          or          d s (sum of q x - 128 sum of x)
// with integer sums: exact, whatever else is in the batch. Groups are added in ascending order for any number of rows.
//
// Weights lie as tiles of 16 outputs; of a tile, group after group, one record (read once, front to back, at any number of rows):
//     4 bits: d fp16[16] | m fp16[16] | 4 x 64 bytes; dword i of vector j holds columns 4j..4j+3 (low halves) and
//             16 + 4j .. 16 + 4j+3 (high halves) of output i                                                   320 bytes
//     8 bits: d fp16[16] | 8 x 64 bytes; dword i of vector j holds columns 4j..4j+3 of output i                544 bytes
//
// Floor: one row reads 20 (34) bytes for each 32 weights; R rows do 8 R vector products and 3 R vector fp32 operations for each
// record, so at best 8 of 11 slots are int8 products.
#pragma once

#include "simd.h"

namespace headrace {

constexpr int GROUP = 32;
constexpr int TILE = 16;
// Rows computed at once: their sums and one record fit the vector registers (32 of 64 bytes, or 16 of 32).
#if defined(__AVX512F__)
constexpr int ROWS = 12;
#else
constexpr int ROWS = 4;
#endif

struct Matrix {
  const uint8_t* records;
  int64_t outputs;  // rows of the matrix; the last tile is padded with zero weights
  int64_t columns;
  int64_t bits;

  int tiles() const { return (int)((outputs + TILE - 1) / TILE); }
  int groups() const { return (int)(columns / GROUP); }
  int record() const { return bits == 4 ? 320 : 544; }
  const uint8_t* tile(int64_t index) const { return records + index * groups() * record(); }
};

// What one group of one row's activations needs beside its bytes.
struct Scale {
  float scale;    // s
  float sum;      // s * sum of x
  int32_t shift;  // -128 * sum of x
};

// Rows of quantized activations: x[row * columns + column], scales[row * columns / 32 + group].
struct Activations {
  int8_t* x;
  Scale* scales;
  int64_t columns;

  int8_t* row(int64_t r) const { return x + r * columns; }
  Scale* scale(int64_t r) const { return scales + r * (columns / GROUP); }
};

// The largest magnitude; NaN if any is NaN or infinite: what is not finite must come out again as the row's result.
inline float magnitude(f32x16 a, f32x16 b) {
  float most = largest(max(abs(a), abs(b)));
  f32x16 zero = (a - a) + (b - b);  // 0, or NaN where a lane is not finite
  return sum(zero) == 0.0f ? most : __builtin_nanf("");
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
  scale->sum = scale->scale * (float)total;
  scale->shift = -128 * total;
}

template <int BITS>
struct Record;

template <>
struct Record<4> {
  u32x16 q[8];
  f32x16 d, m;
  explicit Record(const uint8_t* from) : d(half(from)), m(half(from + 32)) {
    for (int j = 0; j < 4; j++) {
      u32x16 packed = load<u32x16>(from + 64 + 64 * j);
      q[j] = packed & 0x0f0f0f0fu;
      q[4 + j] = (packed >> 4) & 0x0f0f0f0fu;
    }
  }
};

template <>
struct Record<8> {
  u32x16 q[8];
  f32x16 d;
  explicit Record(const uint8_t* from) : d(half(from)) {
    for (int j = 0; j < 8; j++) q[j] = load<u32x16>(from + 32 + 64 * j);
  }
};

// acc[r] = outputs of one tile for rows [first, first + R).
template <int BITS, int R>
inline void product(const uint8_t* tile, const Activations& in, int64_t first, f32x16* acc) {
  const int groups = (int)(in.columns / GROUP);
  const int8_t* x = in.row(first);
  const Scale* scales = in.scale(first);
  f32x16 sums[R];
  for (int r = 0; r < R; r++) sums[r] = f32x16{};
  for (int g = 0; g < groups; g++) {
    const Record<BITS> w(tile + g * (BITS == 4 ? 320 : 544));
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const int8_t* row = x + r * in.columns + g * GROUP;
      const Scale& s = scales[r * groups + g];
      i32x16 dot = BITS == 8 ? i32x16{} + s.shift : i32x16{};
#pragma GCC unroll 8
      for (int j = 0; j < 8; j++) dot = dot4<BITS>(dot, w.q[j], load<int32_t>(row + 4 * j));
      sums[r] = fma(to_float(dot), w.d * splat(s.scale), sums[r]);
      if constexpr (BITS == 4) sums[r] = fma(w.m, splat(s.sum), sums[r]);
    }
  }
  for (int r = 0; r < R; r++) acc[r] = sums[r];
}

template <int BITS, int R = ROWS>
inline void product(const uint8_t* tile, const Activations& in, int64_t first, int rows, f32x16* acc) {
  if (rows == R) return product<BITS, R>(tile, in, first, acc);
  if constexpr (R > 1) product<BITS, R - 1>(tile, in, first, rows, acc);
}

// One tile of outputs for `rows` (at most ROWS) rows.
inline void product(const Matrix& w, int tile, const Activations& in, int64_t first, int rows, f32x16* acc) {
  if (w.bits == 4) product<4>(w.tile(tile), in, first, rows, acc);
  else product<8>(w.tile(tile), in, first, rows, acc);
}

}  // namespace headrace
