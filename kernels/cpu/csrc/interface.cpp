// The C interface that kernels/cpu/native.py binds. All memory that is passed in belongs to the caller and must outlive the
// object it is given to; nothing is allocated in a step that is not larger than every step before it.
#include <chrono>

#include "decoder.h"
#include "pack.h"

using namespace headrace;

constexpr int64_t ALONE = 2;  // rows of logits that are masked before a second thread is awake

// Seconds that this thread takes to multiply `rows` rows with TILES tiles, all zeros, in tiles of the processor's or with vectors.
static double seconds_of(int64_t kind, int64_t rows, int64_t columns, bool in_tiles) {
  const int64_t bytes = with_format(kind, [&](auto format) { return columns / format.COLUMNS * record_bytes<decltype(format)>(); });
  std::vector<uint8_t> records(TILES * bytes);
  std::vector<int8_t> x(rows * columns);
  std::vector<Scale> scales(rows * columns / GROUP);
  const Activations in{x.data(), scales.data(), columns};
  Tile tiles[TILES];
  for (int t = 0; t < TILES; t++) tiles[t] = {records.data() + t * bytes, records.data() + t * bytes};
  f32x16 out[AT_ONCE];
  auto keep = [&](int64_t r, int, f32x16 sums) { out[r] = sums; };
  const auto begun = std::chrono::steady_clock::now();
  if (in_tiles) multiply_in_tiles(kind, tiles, TILES, in, rows, keep);
  else multiply(kind, tiles, TILES, in, rows, keep);
  __asm__ volatile("" : : "r"(out) : "memory");
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
}

// `times` times four rows by 32 columns of sixteen outputs, all in registers or in the first level of cache. Returns the sum of the last.
ALONE_IN_REGISTERS static int32_t products(int64_t times, const int8_t* x, const u32x16* w) {
  constexpr int R = 4, QUADS = GROUP / 4;
  i32x16 sums[R]{};
  for (int64_t i = 0; i < times; i++) {
    __asm__ volatile("" : "+r"(x), "+r"(w) : : "memory");  // what is there may have changed: compute it again
    Dots<4, QUADS> dots[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) dots[r] = Dots<4, QUADS>::from(0);
#pragma GCC unroll 8
    for (int j = 0; j < QUADS; j++) {
      const u32x16 some = w[j];
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) dots[r].add(j, some, load<int32_t>(x + r * GROUP + 4 * j));
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) store(&sums[r], dots[r].total());
  }
  return sum(sums[0] + sums[1] + sums[2] + sums[3]);
}

// The sum of vectors of sixteen numbers, `bytes` in all.
static u32x16 summed(const uint8_t* at, int64_t bytes) {
  constexpr int64_t WIDTH = sizeof(u32x16);
  u32x16 sums[2]{};
  for (int64_t i = 0; i < bytes / WIDTH; i++) {
    prefetch(at + i * WIDTH + AHEAD, WIDTH);
    sums[i % 2] += load<u32x16>(at + i * WIDTH);
  }
  return sums[0] + sums[1];
}

#pragma GCC visibility push(default)
extern "C" {

Team* headrace_team(int32_t threads) { return new Team(threads); }

void headrace_team_free(Team* team) { delete team; }

Decoder* headrace_decoder(Team* team, const Model* model) { return new Decoder(*model, *team); }

void headrace_decoder_free(Decoder* decoder) { delete decoder; }

void headrace_forward(Decoder* decoder, const Step* step, const Cache* cache, float* out) {
  decoder->forward(*step, *cache, out);
}

void headrace_logits(Decoder* decoder, const float* hidden, int64_t rows, float* out) { decoder->logits(hidden, rows, out); }

// Mask rows[i] of logits [*, tokens] by the bits allowed[i] of `words` words, for `count` different rows.
void headrace_mask(Team* team, float* logits, int64_t tokens, const int64_t* rows, int64_t count, const uint32_t* allowed,
                   int64_t words) {
  auto mask = [&](int i) { mask_row(logits + rows[i] * tokens, allowed + i * words, tokens); };
  if (count <= ALONE) {
    for (int i = 0; i < count; i++) mask(i);
    return;
  }
  team->run([&](int) { team->each((int)count, mask); });
}

// --- weights -----------------------------------------------------------------------------------------------------------------

int64_t headrace_block_bytes(int64_t kind) {
  return with_format(kind, [](auto format) { return (int64_t)BlockOf<decltype(format)>::BYTES_OF; });
}

int64_t headrace_record_bytes(int64_t kind) {
  return with_format(kind, [](auto format) { return (int64_t)record_bytes<decltype(format)>(); });
}

// `rows` of GGUF blocks, `stride` bytes apart, to tiles.
void headrace_pack(int64_t kind, const uint8_t* rows, int64_t stride, int64_t outputs, int64_t columns, uint8_t* out) {
  with_format(kind, [&](auto format) { pack<decltype(format)>(rows, stride, outputs, columns, out); });
}

// `count` matrices of an open file to tiles. Returns 0, a number of `errno`'s, or -1 if the file ends before one of them does.
int64_t headrace_pack_file(int32_t file, const FileMatrix* matrices, int64_t count) {
  std::vector<uint8_t> rows;
  int64_t failed = 0;
  for (int64_t i = 0; i < count && !failed; i++)
    failed = with_format(matrices[i].kind, [&](auto format) { return pack_file<decltype(format)>(file, matrices[i], rows); });
  return failed;
}

// out [outputs, columns]: what the weights are worth.
void headrace_unpack(const Matrix* w, float* out) {
  for (int64_t i = 0; i < w->outputs; i++) embed(*w, i, out + i * w->columns);
}

// --- tiles of the processor's (kernels/cpu/tiles.py) -----------------------------------------------------------------------------

// Whether there are any; asks the system for them.
int32_t headrace_tiles_permitted() { return tiles_permitted(); }

// From how many rows on they are used.
void headrace_tiles_from(int64_t wide, int64_t narrow) {
  tiles_from.wide = std::max<int64_t>(wide, LEAST);
  tiles_from.narrow = std::max<int64_t>(narrow, LEAST);
}

double headrace_seconds(int64_t kind, int64_t rows, int64_t columns, int32_t in_tiles) {
  return seconds_of(kind, rows, columns, in_tiles);
}

// --- single operations, for tests and the benchmark ----------------------------------------------------------------------

// Each member of the team multiplies `times` times 4 rows, x [4, 32], by 32 columns of sixteen outputs, w [8, 64]: the rate of int8
// products that wait for nothing. Returns the sum of all sums.
int32_t headrace_products(Team* team, int64_t times, const int8_t* x, const uint8_t* w) {
  u32x16 weights[GROUP / 4];
  std::memcpy(weights, w, sizeof weights);
  std::atomic<int32_t> found = 0;
  team->run([&](int) { found = products(times, x, weights); });
  return found;
}

// out [16]: sums of `bytes` / 64 vectors of sixteen numbers. What the team takes for it is what memory gives.
void headrace_read(Team* team, const uint8_t* at, int64_t bytes, uint32_t* out) {
  constexpr int64_t PIECE = 1 << 18;
  const int pieces = (int)((bytes + PIECE - 1) / PIECE);
  std::vector<u32x16> sums(pieces);
  team->run([&](int) {
    team->each(pieces, [&](int i) { sums[i] = summed(at + i * PIECE, std::min(PIECE, bytes - i * PIECE)); });
  });
  const u32x16 all = summed((const uint8_t*)sums.data(), pieces * (int64_t)sizeof(u32x16));
  std::memcpy(out, &all, sizeof all);
}

// out [rows, outputs] = in [rows, columns] * w^T, activations quantized on the way; for each of `count` matrices of one shape, as a
// step goes through its layers.
void headrace_linear(Team* team, const Matrix* w, int64_t count, const float* in, int64_t rows, float* out) {
  ActivationMemory memory;
  Activations x = memory.at_least(rows, w->columns);
  team->run([&](int) {
    for (int64_t i = 0; i < count; i++) {
      team->each_row(rows, [&](int r) { quantize_row(in + r * w->columns, x, r); });
      linear(*team, w[i], x, rows, out);
    }
  });
}

// Place and attend layers [layer, end): qkv [rows, (heads + 2 kv_heads) dim], out [rows, heads dim] of the last one.
void headrace_attention(Team* team, const Heads* heads, const Turn* turn, const Step* step, const Cache* cache, int64_t layer,
                        int64_t end, int64_t window, float* qkv, float* out) {
  AttentionStep attention(*heads, team->size());
  attention.plan(step->rows, step->chunks, step->chunk);
  team->run([&](int) {
    for (int64_t l = layer; l < end; l++) {
      team->each_row(step->rows, [&](int r) { attention.place(r, qkv + r * heads->qkv(), *turn, *cache, l); });
      team->each(attention.tasks(), [&](int i) { attention.task(i, *cache, l, window, out); });
      team->each_row(step->rows, [&](int r) { attention.finish(r, window, out); });
    }
  });
}

}  // extern "C"
#pragma GCC visibility pop
