// Products of int8 activations with quantized weights (`formats.h`), over groups of 32 columns.
//
// An activation is s * x, x in -127..127, s for each row and group. A weight is scale * (q - ZERO) + offset, so that what SUB columns of
// one output add to a row's result is
//     scale s * (sum of q x - ZERO * sum of x) + offset * (s * sum of x)
// with integer sums: exact, whatever else is in the batch. Groups are added in ascending order for any number of rows.
//
// Floor: one row reads a tile's record once, front to back: that is bound by memory. R rows do 8 R vector products of int8 for each
// group of a tile and, on the same two multipliers, 3 R more (4 R with an offset, 6 R where SUB is 16), so at best 8 of 11 slots are int8
// products. Additions have other units; unpacking is shared by all rows.
#pragma once

#include <algorithm>

#include "formats.h"

namespace headrace {

// Rows and tiles computed at once: their ROWS * TILES integer sums, TILES vectors of weights and one of activations fill the
// vector registers (32 of 64 bytes, or 16 of 32), and each vector loaded serves several products.
#if defined(__AVX512F__)
constexpr int ROWS = 4, TILES = 4;
#else
constexpr int ROWS = 5, TILES = 1;
#endif
// Functions whose sums fill the registers: GCC 12 kept those of some in memory where it had put them into others, 15 times as slow.
#define ALONE_IN_REGISTERS __attribute__((noinline))
constexpr int64_t AT_ONCE = 48;  // rows that share an unpacked panel, at most
constexpr int AHEAD = 4096;  // bytes asked for in advance by a single row, which reads one tile after the other

// What one group of one row's activations needs beside its bytes.
struct Scale {
  float scale;     // s
  float total;     // s times the sum of x
  int32_t sum[2];  // of the first 16 x, and of the others
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
  scale->scale = most / 127.0f;
  scale->sum[0] = sum(qa);
  scale->sum[1] = sum(qb);
  scale->total = scale->scale * (float)(scale->sum[0] + scale->sum[1]);
}

// Group `g` of a record, of which `tiles` point to the same place, times the activations x[r * stride]; adds to sums[r][t].
template <class Format, int R, int T>
inline void group_product(const uint8_t* const* records, int g, const int8_t* x, int64_t stride, const Scale* scales, int64_t groups,
                          f32x16 (*sums)[T]) {
  constexpr int SUBS = GROUP / Format::SUB, QUADS = Format::SUB / 4;
  using Sum = Dots<Format::BITS, QUADS>;
#pragma GCC unroll 2
  for (int sub = 0; sub < SUBS; sub++) {
    Sum dot[R][T];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const Scale& s = scales[r * groups];
      const int32_t start = -(Format::ZERO - Sum::CENTRE) * (SUBS == 2 ? s.sum[sub] : s.sum[0] + s.sum[1]);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) dot[r][t] = Sum::from(start);
    }
#pragma GCC unroll 8
    for (int j = 0; j < QUADS; j++) {
      u32x16 w[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) w[t] = Format::quants(records[t] + Format::HEADER + g * Format::EACH, sub * QUADS + j);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const int32_t quad = load<int32_t>(x + r * stride + 4 * (sub * QUADS + j));
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) dot[r][t].add(j, w[t], quad);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      const f32x16 scale = Format::scale(records[t], g, sub);
      f32x16 offset{};
      if constexpr (Format::MIN) offset = Format::offset(records[t], g, sub);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const Scale& s = scales[r * groups];
        sums[r][t] = fma(to_float(dot[r][t].total()), scale * splat(s.scale), sums[r][t]);
        if constexpr (Format::MIN)
          sums[r][t] = fma(offset, splat(SUBS == 2 ? s.scale * (float)s.sum[sub] : s.total), sums[r][t]);
      }
    }
  }
}

// out[r * T + t] = outputs of tiles[t] for row first + r. One row asks for what it will read soon, of its tile or the next one; several, of
// which the first cut asks, for the tiles whose turn comes next.
template <class Format, int R, int T>
ALONE_IN_REGISTERS void product(const Tile* tiles, const Activations& in, int64_t first, bool ask, f32x16* out) {
  constexpr int RECORD = record_bytes<Format>(), PARTS = Format::COLUMNS / GROUP, SHARE = (RECORD / PARTS + 63) / 64 * 64;
  const int64_t groups = in.columns / GROUP;
  const int8_t* x = in.row(first);
  const Scale* scales = in.scale(first);
  f32x16 sums[R][T];
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) sums[r][t] = f32x16{};
  for (int64_t at = 0; at < groups / PARTS; at++) {
    const uint8_t* records[T];
    for (int t = 0; t < T; t++) records[t] = tiles[t].records + at * RECORD;
    for (int g = 0; g < PARTS; g++, x += GROUP, scales++) {
      const int64_t share = at * RECORD + g * SHARE;
      if constexpr (R == 1) {
        const int64_t ahead = share + AHEAD - groups / PARTS * RECORD;
        prefetch(ahead < 0 ? tiles[0].records + share + AHEAD : tiles[0].next + ahead, SHARE);
      } else
        for (int t = 0; t < T && ask; t++) prefetch(tiles[t].next + share, SHARE);
      group_product<Format, R, T>(records, g, x, in.columns, scales, groups, sums);
    }
  }
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) out[r * T + t] = sums[r][t];
}

template <class Format, int R = ROWS>
inline void product(const Tile* tiles, const Activations& in, int64_t first, int rows, bool ask, f32x16* out) {
  if (rows == R) return product<Format, R, TILES>(tiles, in, first, ask, out);
  if constexpr (R > 1) product<Format, R - 1>(tiles, in, first, rows, ask, out);
}

// Emits `count` of TILES tiles for all rows, which are cut evenly into at most ROWS.
template <class Emit>
inline void multiply_rows(int64_t kind, const Tile* tiles, int first_tile, int count, const Activations& in, int64_t rows, Emit&& emit) {
  f32x16 out[ROWS * TILES];
  const int64_t cuts = (rows + ROWS - 1) / ROWS;
  for (int64_t cut = 0; cut < cuts; cut++) {
    const int64_t first = rows * cut / cuts, last = rows * (cut + 1) / cuts;
    with_format(kind, [&](auto format) { product<decltype(format)>(tiles, in, first, (int)(last - first), cut == 0, out); });
    for (int64_t r = first; r < last; r++)
      for (int i = 0; i < count; i++) emit(r, first_tile + i, out[(r - first) * TILES + i]);
  }
}

// Tiles that are read one after another: the next one's turn comes before that of what `next` says, which comes after the last.
inline void in_order(Tile* tiles, int count) {
  const uint8_t* after = tiles[0].next;
  for (int t = 0; t + 1 < count; t++) tiles[t].next = tiles[t + 1].records;
  tiles[count - 1].next = after;
}

// Most rows that are sooner done when each cut of them unpacks the weights on its way: a panel's go through memory, and types with a
// scale for 16 columns are dear to unpack. Eight rows of Q4_1 and Q8_0 by two cuts took 0.88 of their time by a panel, of Q4_K 0.97.
inline int64_t most_without_panel(int64_t kind) { return (columns_of_scale(kind) == GROUP ? 2 : 1) * ROWS; }

template <class Emit>
void multiply_panels(int64_t kind, const Tile* tiles, int count, const Activations& in, int64_t rows, Emit&& emit);  // `panel.h`

// Calls emit(row, tile, outputs) for `count` tiles, all of that kind, and all rows, AT_ONCE at most. One row is bound by reading its
// weights, which a tile after the other reads best; more rows take TILES tiles together, of which the last may be there several times.
template <class Emit>
inline void multiply(int64_t kind, const Tile* tiles, int count, const Activations& in, int64_t rows, Emit&& emit) {
  if (rows == 1) {
    f32x16 out;
    for (int t = 0; t < count; t++) {
      with_format(kind, [&](auto format) { product<decltype(format), 1, 1>(tiles + t, in, 0, true, &out); });
      emit(0, t, out);
    }
    return;
  }
#if !defined(__AVX512F__)
  if (rows > most_without_panel(kind)) return multiply_panels(kind, tiles, count, in, rows, emit);
#endif
  for (int t = 0; t < count; t += TILES) {
    Tile some[TILES];
    for (int i = 0; i < TILES; i++) some[i] = tiles[std::min(t + i, count - 1)];
    multiply_rows(kind, some, t, std::min(TILES, count - t), in, rows, emit);
  }
}

}  // namespace headrace
