// Products in tiles and by vectors, of one type for each shape of a panel, and the tile instructions themselves: what test_tiles.py
// builds in seconds, where the library takes half a minute.
#include "rows.h"
#include "tiles.h"

using namespace headrace;

template <class Format>
static void both_ways(const Matrix& w, const Activations& in, int64_t rows, float* tiled, float* plain) {
  const Blocks blocks(rows);
  const TilesInUse use(blocks.size, Format::SUB);
  f32x16 out[AT_ONCE], one;
  for (int t = 0; t < w.tiles(); t++) {
    const Tile tile = w.tile(t);
    tile_rows<Format>(tile, in, blocks, out);
    for (int64_t r = 0; r < rows; r++) {
      product<Format, 1, 1>(&tile, in, r, false, &one);
      store(tiled + (r * w.tiles() + t) * TILE, out[r]);
      store(plain + (r * w.tiles() + t) * TILE, one);
    }
  }
}

#pragma GCC visibility push(default)
extern "C" {

int32_t alone_permitted() { return tiles_permitted(); }

// x [rows, columns] times the tiles of w, [rows, 16 tiles] twice. Returns 0 if w's type is not there.
int32_t alone_products(const Matrix* w, const float* x, int64_t rows, float* tiled, float* plain) {
  ActivationMemory memory;
  const Activations in = memory.at_least(rows, w->columns);
  for (int64_t r = 0; r < rows; r++) quantize_row(x + r * w->columns, in, r);
  switch (w->kind) {
    case Q8_0: return both_ways<Q8_0Format>(*w, in, rows, tiled, plain), 1;
    case Q4_K: return both_ways<Q4_KFormat>(*w, in, rows, tiled, plain), 1;
    case Q6_K: return both_ways<Q6_KFormat>(*w, in, rows, tiled, plain), 1;
    case Q2_K: return both_ways<Q2_KFormat>(*w, in, rows, tiled, plain), 1;
    default: return 0;
  }
}

// sums [rows, 16] += x [rows, columns] times w [columns / 4, 16, 4], with tiles of so many rows and columns.
void alone_instruction(int64_t rows, int64_t columns, const int8_t* x, const int8_t* w, int32_t* sums) {
  const TilesInUse use((int)rows, (int)columns);
  written(x);
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, x, columns);
  _tile_loadd(2, w, 64);
  _tile_dpbssd(0, 1, 2);
  _tile_stored(0, sums, 64);
}

// What no processor does: a product of tiles that do not fit, or of one with itself, a tile without a shape, tiles that were given back.
void alone_misuse(int32_t which) {
  const TilesInUse use(16, 32);
  if (which == 0) _tile_dpbssd(0, 2, 1);
  if (which == 1) _tile_dpbssd(0, 1, 1);
  if (which == 2) _tile_zero(6);
  if (which == 3) {
    _tile_release();
    _tile_dpbssd(0, 1, 2);
  }
}

}  // extern "C"
#pragma GCC visibility pop
