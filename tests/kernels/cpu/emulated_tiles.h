// The tile instructions of AMX in plain C++, for tests on processors without them: included after `emulated.h`. Where Intel's guide has an
// exception (shapes that do not fit, a tile without one, no permission) nothing is done and a fault is counted.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>  // before `syscall` below stands for our own: it has calls of the system's

namespace emulated {

enum Permission { REFUSED, NOT_ASKED, GRANTED };
inline std::atomic<int> faults{0}, permission{NOT_ASKED}, in_use{0};  // the last: threads that have not given tiles back
inline std::atomic<int64_t> products{0};

struct Tiles {
  int used;
  uint16_t row_bytes[8];
  uint8_t rows[8];
  uint8_t data[8][16][64];
};
inline thread_local Tiles tiles{};

inline bool holds(bool condition) {
  if (!condition) faults++;
  return condition;
}
inline bool shaped(int tile) { return tile >= 0 && tile < 8 && tiles.rows[tile] > 0; }

inline long system_call(long, int, int) {
  if (permission == REFUSED) return -1;
  permission = GRANTED;
  return 0;
}

inline void release() {
  in_use -= tiles.used;
  tiles = {};
}
// 64 bytes: palette, first row, 14 that are 0; bytes of a row of 8 tiles, 2 each, and 16 that are 0; rows of 8 tiles, and 8 that are 0.
inline void load_config(const void* from) {
  uint8_t bytes[64];
  std::memcpy(bytes, from, 64);
  bool fits = permission == GRANTED && bytes[0] == 1 && bytes[1] == 0;
  for (int i = 0; i < 64; i++) fits &= bytes[i] == 0 || i < 1 || (i >= 16 && i < 32) || (i >= 48 && i < 56);
  release();
  for (int i = 0; i < 8; i++) {
    std::memcpy(tiles.row_bytes + i, bytes + 16 + 2 * i, 2);
    tiles.rows[i] = bytes[48 + i];
    fits &= tiles.row_bytes[i] <= 64 && tiles.rows[i] <= 16 && (tiles.row_bytes[i] == 0) == (tiles.rows[i] == 0);
  }
  if (holds(fits)) in_use += tiles.used = 1;
  else tiles = {};
}
inline void zero(int tile) {
  if (holds(shaped(tile))) std::memset(tiles.data[tile], 0, sizeof tiles.data[tile]);
}
inline void load(int tile, const void* from, int64_t stride) {
  if (!holds(shaped(tile))) return;
  std::memset(tiles.data[tile], 0, sizeof tiles.data[tile]);
  for (int r = 0; r < tiles.rows[tile]; r++) std::memcpy(tiles.data[tile][r], (const char*)from + r * stride, tiles.row_bytes[tile]);
}
inline void store(int tile, void* to, int64_t stride) {
  if (!holds(shaped(tile))) return;
  for (int r = 0; r < tiles.rows[tile]; r++) std::memcpy((char*)to + r * stride, tiles.data[tile][r], tiles.row_bytes[tile]);
}
// sum[m][n] += a[m][4 k + i] * b[k][4 n + i], over all k and i: signed bytes, sums of 32 bits.
inline void product(int sum, int a, int b) {
  const bool fits = shaped(sum) && shaped(a) && shaped(b) && sum != a && sum != b && a != b && tiles.rows[sum] == tiles.rows[a] &&
                    tiles.row_bytes[sum] == tiles.row_bytes[b] && tiles.row_bytes[a] == 4 * tiles.rows[b] && tiles.row_bytes[b] % 4 == 0;
  if (!holds(fits)) return;
  products++;
  for (int m = 0; m < tiles.rows[sum]; m++)
    for (int n = 0; n < tiles.row_bytes[sum] / 4; n++) {
      int32_t out;
      std::memcpy(&out, tiles.data[sum][m] + 4 * n, 4);
      for (int k = 0; k < tiles.row_bytes[a]; k++) out += (int8_t)tiles.data[a][m][k] * (int8_t)tiles.data[b][k / 4][4 * n + k % 4];
      std::memcpy(tiles.data[sum][m] + 4 * n, &out, 4);
    }
}

}  // namespace emulated

#pragma GCC visibility push(default)
extern "C" {
// Since the last question.
__attribute__((used)) inline int32_t emulated_faults() { return emulated::faults.exchange(0); }
__attribute__((used)) inline int64_t emulated_products() { return emulated::products.exchange(0); }
__attribute__((used)) inline int32_t emulated_in_use() { return emulated::in_use; }
// What the system says to whoever asks for tiles.
__attribute__((used)) inline void emulated_permission(int32_t granted) {
  emulated::permission = granted ? emulated::NOT_ASKED : emulated::REFUSED;
}
}
#pragma GCC visibility pop

#define syscall emulated::system_call
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#define _tile_loadconfig emulated::load_config
#define _tile_release emulated::release
#define _tile_zero emulated::zero
#define _tile_loadd emulated::load
#define _tile_stored emulated::store
#define _tile_dpbssd emulated::product

#define __AMX_INT8__ 1
