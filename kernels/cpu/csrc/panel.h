// Products of many rows without AVX-512: the weights of 256 columns of a tile are unpacked once, into memory that stays in the first level
// of cache while all rows use them. Sums are added in the order of `matmul.h`'s, so a row has the same bits either way.
//
// Floor: a row and 32 columns of a tile are 16 byte products, as many additions and 12 operations on fp32 (8 without an offset); a Zen 3
// does four a cycle of which at most two multiply, and reads two vectors a cycle.
#pragma once

#include "matmul.h"

namespace headrace {

template <class Format>
struct Panel {
  static constexpr int PARTS = Format::COLUMNS / GROUP, SUBS = GROUP / Format::SUB, QUADS = GROUP / 4;
  static constexpr int GROUPS = 8;  // at most, of one panel
  alignas(64) uint8_t quants[GROUPS * QUADS * 64];
  alignas(64) float scale[GROUPS * SUBS * TILE], offset[Format::MIN ? GROUPS * SUBS * TILE : TILE];

  // Groups [first, first + count) of a tile, `first` being a multiple of GROUPS.
  void unpack(const uint8_t* tile, int64_t first, int count) {
    for (int g = 0; g < count; g++) {
      const int part = g % PARTS;
      const uint8_t *record = tile + (first + g) / PARTS * record_bytes<Format>(), *group = record + Format::HEADER + part * Format::EACH;
#pragma GCC unroll 8
      for (int j = 0; j < QUADS; j++) store(quants + (g * QUADS + j) * 64, Format::quants(group, j));
      for (int sub = 0; sub < SUBS; sub++) {
        const int at = (g * SUBS + sub) * TILE;
        store(scale + at, Format::scale(record, part, sub));
        if constexpr (Format::MIN) store(offset + at, Format::offset(record, part, sub));
      }
    }
  }
};

// sums[r] += the panel's `count` groups times the activations x[r * stride], for R rows.
template <class Format, int R>
ALONE_IN_REGISTERS void panel_product(const Panel<Format>& panel, int count, const int8_t* x, int64_t stride, const Scale* scales, f32x16* sums) {
  constexpr int SUBS = GROUP / Format::SUB, QUADS = Format::SUB / 4;
  using Sum = Dots<Format::BITS, QUADS>;
  const int64_t groups = stride / GROUP;
  for (int i = 0; i < count * SUBS; i++) {
    const int sub = i % SUBS;
    const Scale* s = scales + i / SUBS;
    Sum dot[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const int32_t total = SUBS == 2 ? s[r * groups].sum[sub] : s[r * groups].sum[0] + s[r * groups].sum[1];
      dot[r] = Sum::from(-(Format::ZERO - Sum::CENTRE) * total);
    }
#pragma GCC unroll 8
    for (int j = 0; j < QUADS; j++) {
      const u32x16 w = load<u32x16>(panel.quants + (i * QUADS + j) * 64);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) dot[r].add(j, w, load<int32_t>(x + r * stride + 4 * (i * QUADS + j)));
    }
    const f32x16 scale = load<f32x16>(panel.scale + i * TILE);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const Scale& of = s[r * groups];
      f32x16 sum = fma(to_float(dot[r].total()), scale * splat(of.scale), load<f32x16>(sums + r));
      if constexpr (Format::MIN)
        sum = fma(load<f32x16>(panel.offset + i * TILE), splat(SUBS == 2 ? of.scale * (float)of.sum[sub] : of.total), sum);
      store(sums + r, sum);
    }
  }
}

// Rows at once: fewer would read the panel too often, of more the sums would not stay in registers. Any number over 5 can be cut so.
constexpr int PANEL_ROWS = 4;

template <class Format>
inline void panel_product(const Panel<Format>& panel, int count, const Activations& in, int64_t row, int64_t group, int64_t rows,
                          f32x16* sums) {
  const int8_t* x = in.row(row) + group * GROUP;
  const Scale* scales = in.scale(row) + group;
  if (rows == PANEL_ROWS) panel_product<Format, PANEL_ROWS>(panel, count, x, in.columns, scales, sums);
  else panel_product<Format, PANEL_ROWS - 1>(panel, count, x, in.columns, scales, sums);
}

// Tiles that go through the rows together, a panel's columns at a time: of rows of 8,960 columns, what 48 of them need has no place in the
// second level of cache, and of 256 columns it stays in the first.
constexpr int PANEL_TILES = 4;

// sums[t][r] = outputs of `count` tiles for each row.
// What comes next is asked for piece by piece: at once, what had no place in the queue of misses kept all behind it waiting, and 16 rows took
// 1.2 times as long.
template <class Format>
inline void panel_products(const Tile* tiles, int count, const Activations& in, int64_t rows, f32x16 (*sums)[AT_ONCE]) {
  using P = Panel<Format>;
  constexpr int BYTES_OF = P::GROUPS / P::PARTS * record_bytes<Format>();
  const int64_t groups = in.columns / GROUP, cuts = (rows + PANEL_ROWS - 1) / PANEL_ROWS;
  for (int t = 0; t < count; t++)
    for (int64_t r = 0; r < rows; r++) store(sums[t] + r, f32x16{});
  P panel;
  for (int64_t first = 0; first < groups; first += P::GROUPS) {
    const int some = (int)std::min<int64_t>(P::GROUPS, groups - first);
    for (int t = 0; t < count; t++) {
      const uint8_t* next = tiles[t].next + first / P::GROUPS * BYTES_OF;
      panel.unpack(tiles[t].records, first, some);
      for (int64_t cut = 0; cut < cuts; cut++) {
        const int64_t begin = rows * cut / cuts, end = rows * (cut + 1) / cuts;
        prefetch(next + BYTES_OF * (int)cut / (int)cuts, BYTES_OF / (int)cuts + 64);
        panel_product(panel, some, in, begin, first, end - begin, sums[t] + begin);
      }
    }
  }
}

template <class Emit>
inline void multiply_panels(int64_t kind, const Tile* tiles, int count, const Activations& in, int64_t rows, Emit&& emit) {
  f32x16 sums[PANEL_TILES][AT_ONCE];
  for (int begin = 0; begin < count; begin += PANEL_TILES) {
    const int some = std::min(PANEL_TILES, count - begin);
    with_format(kind, [&](auto format) { panel_products<decltype(format)>(tiles + begin, some, in, rows, sums); });
    for (int t = 0; t < some; t++)
      for (int64_t r = 0; r < rows; r++) emit(r, begin + t, sums[t][r]);
  }
}

}  // namespace headrace
