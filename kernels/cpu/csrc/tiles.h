// Products of eight rows and more on processors with AMX. Integer sums are those of `matmul.h`, and they are scaled and added in the
// same order, so a row's result is the same bits whichever of the two computes it.
//
// A panel, 16 outputs by at most 256 columns, is unpacked once for all rows: quants less ZERO, as signed bytes. They lie as a tile wants
// its right factor already, four columns of sixteen outputs in 64 bytes. The left factor are activations, where they lie. SUB columns,
// which share their scales, are one product of tiles; its sums go to memory and from there, scaled, to sums in fp32, which stay in
// registers over a panel.
//
// Floor for 16 rows and 32 columns (SUB = 32), by Intel's published rates: the tile unit multiplies for 16 cycles, half filled, and sums
// are stored in 16. The two vector units take 24 cycles (conversion, scale, addition; with an offset 32), the two of loads 28 (37), so at
// best 8 of 28 (37) cycles' worth of the tile unit are used. Vectors alone take 88 (96). No such processor has run it yet.
#pragma once

#include <atomic>

#include "matmul.h"

#if defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace headrace {

constexpr int64_t NEVER = INT64_MAX;
constexpr int LEAST = 8, MOST = 16;  // rows of a block

// From how many rows on products take tiles: of types with a scale for each 32 columns, and for each 16. Changes no result; set by
// whoever has measured it (kernels/cpu/tiles.py).
struct TilesFrom {
  std::atomic<int64_t> wide = NEVER, narrow = NEVER;

  bool tiled(int64_t kind, int64_t rows) const {
    return rows >= (columns_of_scale(kind) == GROUP ? wide : narrow).load(std::memory_order_relaxed);
  }
};
inline TilesFrom tiles_from;

#if defined(__AMX_INT8__)

constexpr bool HAS_TILES = true;

// Ask the system for the tiles' registers, for all threads of the process (Linux 5.16: Documentation/arch/x86/xstate.rst).
inline bool tiles_permitted() {
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

// Compilers do not know that these instructions read memory: what is written before this is there.
inline void written(const void* memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

// Tiles for blocks of `rows` rows, two sets that take turns: 0 and 3 hold sums, 1 and 4 activations, 2 and 5 weights. They are given
// back at the end: when another thread takes the core, there is nothing of them to save.
class TilesInUse {
 public:
  TilesInUse(int rows, int sub) {
    Shapes shapes;
    for (int first : {0, 3}) {
      shapes.set(first, rows, 64);
      shapes.set(first + 1, rows, sub);
      shapes.set(first + 2, sub / 4, 64);
    }
    written(&shapes);
    _tile_loadconfig(&shapes);
  }
  TilesInUse(const TilesInUse&) = delete;
  ~TilesInUse() { _tile_release(); }

 private:
  struct alignas(64) Shapes {  // as LDTILECFG reads it
    uint8_t palette = 1, first_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int count, int bytes) { rows[tile] = (uint8_t)count, row_bytes[tile] = (uint16_t)bytes; }
  };
};

// sums[r] = x[r * stride ..] times w, for all rows of a block.
inline void tile_product(bool odd, const int8_t* x, int64_t stride, const u32x16* w, i32x16* sums) {
  if (odd) {
    _tile_zero(3);
    _tile_loadd(4, x, stride);
    _tile_loadd(5, w, 64);
    _tile_dpbssd(3, 4, 5);
    _tile_stored(3, sums, 64);
  } else {
    _tile_zero(0);
    _tile_loadd(1, x, stride);
    _tile_loadd(2, w, 64);
    _tile_dpbssd(0, 1, 2);
    _tile_stored(0, sums, 64);
  }
}

// Up to 256 columns of 16 outputs, in parts of SUB columns.
template <int SUB, bool MIN>
struct SignedPanel {
  static constexpr int GROUPS = SUPER / GROUP, SUBS = GROUP / SUB, PARTS = GROUPS * SUBS, QUADS = SUB / 4;
  u32x16 quants[PARTS * QUADS];  // [j]: columns 4 j .. 4 j + 3, less ZERO
  f32x16 scale[PARTS], offset[MIN ? PARTS : 1];

  // `groups` groups from `record` on.
  template <class Format>
  void unpack(const uint8_t* record, int groups) {
    constexpr int EACH = Format::COLUMNS / GROUP;  // groups of a record
    for (int g = 0; g < groups; g++) {
      const uint8_t* at = record + g / EACH * record_bytes<Format>();
      const uint8_t* group = at + Format::HEADER + g % EACH * Format::EACH;
      for (int j = 0; j < GROUP / 4; j++) quants[g * GROUP / 4 + j] = less<Format::ZERO>(Format::quants(group, j));
      for (int sub = 0; sub < SUBS; sub++) {
        scale[g * SUBS + sub] = Format::scale(at, g % EACH, sub);
        if constexpr (MIN) offset[g * SUBS + sub] = Format::offset(at, g % EACH, sub);
      }
    }
    written(this);
  }

 private:
  template <int ZERO>
  static u32x16 less(u32x16 quads) {
    return ZERO ? (u32x16)_mm512_sub_epi8((__m512i)quads, _mm512_set1_epi8((char)ZERO)) : quads;
  }
};

// Adds what part `p` of the panel gives, as `group_product` does.
template <int R, int SUB, bool MIN>
inline void add_part(const SignedPanel<SUB, MIN>& panel, int p, const i32x16* dots, const Scale* scales, int64_t groups,
                     f32x16 (&sums)[R]) {
  constexpr int SUBS = GROUP / SUB;
  const f32x16 scale = panel.scale[p];
  const Scale* s = scales + p / SUBS;
  __asm__("" : "+r"(groups));  // or the compiler keeps sixteen addresses over the parts, in vector registers
#pragma GCC unroll 16
  for (int r = 0; r < R; r++, s += groups) {
    sums[r] = fma(to_float(dots[r]), scale * splat(s->scale), sums[r]);
    if constexpr (MIN) {
      const f32x16 total = SUBS == 2 ? splat(s->scale) * to_float(i32x16{} + s->sum[p % 2]) : splat(s->total);
      sums[r] = fma(panel.offset[p], total, sums[r]);
    }
  }
}

// Adds `groups` groups of a panel to out[r], for the R rows of a block but the first `done`. One copy for all types with this SUB and MIN.
template <int R, int SUB, bool MIN>
__attribute__((noinline)) void block_product(const SignedPanel<SUB, MIN>& panel, int groups, const Activations& in, int64_t at, int done,
                                             f32x16* out) {
  constexpr int IN_FLIGHT = 4;  // products of tiles, so that nobody waits for their results
  const int parts = groups * SignedPanel<SUB, MIN>::SUBS;
  const int64_t stride = in.columns, row_groups = stride / GROUP;
  const int8_t* x = in.x + at * GROUP;
  const Scale* scales = in.scales + at;
  i32x16 dots[IN_FLIGHT][R];
  f32x16 sums[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) sums[r] = out[r];
  for (int p = 0; p < parts + IN_FLIGHT - 1; p++) {
    if (p < parts) tile_product(p % 2, x + p * SUB, stride, panel.quants + p * SignedPanel<SUB, MIN>::QUADS, dots[p % IN_FLIGHT]);
    const int q = p - (IN_FLIGHT - 1);
    if (q >= 0) add_part<R>(panel, q, dots[q % IN_FLIGHT], scales, row_groups, sums);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    if (r >= done) out[r] = sums[r];
}

template <int R = MOST, int SUB, bool MIN>
inline void block_product(int rows, const SignedPanel<SUB, MIN>& panel, int groups, const Activations& in, int64_t at, int done,
                          f32x16* out) {
  if (rows == R) return block_product<R>(panel, groups, in, at, done, out);
  if constexpr (R > LEAST) block_product<R - 1>(rows, panel, groups, in, at, done, out);
}

// Rows in as few blocks as can be, all of one size: the last begins within the one before it where they do not come out even.
struct Blocks {
  int rows, count, size;

  explicit Blocks(int64_t rows) : rows((int)rows), count((int)(rows + MOST - 1) / MOST), size((int)(rows + count - 1) / count) {}
  int begin(int b) const { return std::min(b * size, rows - size); }
  int done(int b) const { return b * size - begin(b); }  // rows at its begin that are the one before it's
};

// out[r] = outputs of one tile of weights for all rows.
template <class Format>
inline void tile_rows(const Tile& tile, const Activations& in, const Blocks& blocks, f32x16* out) {
  using Some = SignedPanel<Format::SUB, Format::MIN>;
  constexpr int RECORDS = SUPER / Format::COLUMNS, BYTES_OF = RECORDS * record_bytes<Format>();  // of a whole panel
  const int64_t groups = in.columns / GROUP;
  Some panel;
  std::fill(out, out + blocks.rows, f32x16{});
  for (int64_t at = 0, from = 0; at < groups; at += Some::GROUPS, from += BYTES_OF) {
    const int count = (int)std::min<int64_t>(Some::GROUPS, groups - at);
    prefetch(tile.next + from, BYTES_OF / Some::GROUPS * count);
    panel.template unpack<Format>(tile.records + from, count);
    for (int b = 0; b < blocks.count; b++)
      block_product(blocks.size, panel, count, in.from(blocks.begin(b)), at, blocks.done(b), out + blocks.begin(b));
  }
}

// Calls emit(row, tile, outputs) for `count` tiles, all of that kind, and LEAST to AT_ONCE rows.
template <class Emit>
inline void multiply_in_tiles(int64_t kind, const Tile* tiles, int count, const Activations& in, int64_t rows, Emit&& emit) {
  const Blocks blocks(rows);
  const TilesInUse use(blocks.size, columns_of_scale(kind));
  f32x16 out[AT_ONCE];
  for (int t = 0; t < count; t++) {
    with_format(kind, [&](auto format) { tile_rows<decltype(format)>(tiles[t], in, blocks, out); });
    for (int r = 0; r < blocks.rows; r++) emit(r, t, out[r]);
  }
}

#else

constexpr bool HAS_TILES = false;

inline bool tiles_permitted() { return false; }

template <class Emit>
inline void multiply_in_tiles(int64_t kind, const Tile* tiles, int count, const Activations& in, int64_t rows, Emit&& emit) {
  multiply(kind, tiles, count, in, rows, emit);
}

#endif

// `multiply`, in tiles where that is faster.
template <class Emit>
inline void products(int64_t kind, const Tile* tiles, int count, const Activations& in, int64_t rows, Emit&& emit) {
  if (HAS_TILES && tiles_from.tiled(kind, rows)) return multiply_in_tiles(kind, tiles, count, in, rows, emit);
  multiply(kind, tiles, count, in, rows, emit);
}

}  // namespace headrace
