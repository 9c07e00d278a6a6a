// Attention that reads the blocks of the KV cache where they lie.
//
// A block holds, for each layer and KV head, its tokens' keys and then their values in bf16, each in the order in which the
// products below want them (B tokens in a block, D dimensions):
//     keys    [D / 2][B][2]   sixteen neighbouring tokens are one vector of dimension pairs: lanes are tokens, and the scores of
//                             sixteen keys come out side by side, with nothing to add up across lanes
//     values  [B / 2][D][2]   sixteen dimensions are one vector of token pairs: lanes are dimensions of the output
// so that neither a decode nor a prefill copies or transposes anything, and both do the same arithmetic.
//
// A row's keys are cut into spans of SPAN positions, counted from position 0. Each span gives a partial result (output, largest
// score, sum of weights), and partial results are merged in ascending order (Dao et al. 2022, arXiv 2205.14135, section
// 3.1; spans in parallel for decode: Flash-Decoding, Dao 2023). Spans depend on positions only, so a row's result is the same bit
// for bit in any batch and any chunk of its prompt, alone or with others, first computed or computed again.
//
// Floor: decode reads 4 D bytes for each key and KV head; prefill does 4 D operations for each query head and key, half of them
// hidden by causality, at twice the fp32 rate with AVX512-BF16.
#pragma once

#include <algorithm>

#include "rows.h"

namespace headrace {

constexpr int64_t SPAN = 128;  // keys of one partial result
// Query rows, and vectors of keys and of dimensions, computed at once: their sums stay in registers, and each vector read serves all rows.
#if defined(__AVX512F__)
constexpr int QUERIES = 6;
template <int R>
constexpr int KEYS = 2;
template <int R>
constexpr int DIMS = 4;
#else
constexpr int QUERIES = 5;
template <int R>
constexpr int KEYS = R == 1 ? 2 : 1;
template <int R>
constexpr int DIMS = R == 1 ? 4 : 1;
#endif
constexpr int MAX_DIM = 256;   // of a head
constexpr float HIDDEN = -1e30f;

// The pool of blocks; a block is one contiguous range over all layers.
struct Cache {
  uint32_t* storage;
  int64_t block_size, layers, kv_heads, dim;

  // Block `block` of one layer and head: keys, then values, in dwords.
  uint32_t* keys(int64_t block, int64_t layer, int64_t head) const {
    return storage + (((block * layers + layer) * kv_heads + head) * block_size * dim);
  }
  uint32_t* values(int64_t block, int64_t layer, int64_t head) const {
    return keys(block, layer, head) + block_size * dim / 2;
  }
};

// Rows [first, first + rows) of the step: positions [start, start + rows) of one sequence.
struct Chunk {
  int64_t first, rows, start;
  int64_t wanted;        // of the last rows' results
  const int32_t* table;  // block ids of the sequence
};

// Store one token's key and value (fp32 [dim] each) in one layer and head.
inline void write_token(const Cache& cache, const int32_t* table, int64_t layer, int64_t head, int64_t position,
                        const float* key, const float* value) {
  const int64_t size = cache.block_size, dim = cache.dim;
  const int64_t block = table[position / size], token = position % size;
  uint32_t* keys = cache.keys(block, layer, head) + token;
  for (int64_t d = 0; d < dim / 2; d++)
    keys[d * size] = (uint32_t)to_bf16(key[2 * d + 1]) << 16 | to_bf16(key[2 * d]);
  uint16_t* halves = (uint16_t*)(cache.values(block, layer, head) + token / 2 * dim) + token % 2;
  for (int64_t d = 0; d < dim; d++) halves[2 * d] = to_bf16(value[d]);
}

// After the newest token: zero the values that a vector of tokens would read beyond it. They get weight 0, but what an earlier
// owner of the block left may be NaN, and 0 times NaN is NaN.
inline void close_values(const Cache& cache, const int32_t* table, int64_t layer, int64_t head, int64_t position) {
  const int64_t size = cache.block_size, dim = cache.dim, token = position % size, next = token + 1;
  uint32_t* values = cache.values(table[position / size], layer, head);
  if (next % 2)
    for (int64_t d = 0; d < dim; d++) values[next / 2 * dim + d] &= 0xffff;
  const int64_t first = (next + 1) / 2, last = (token / LANES + 1) * LANES / 2;
  std::memset(values + first * dim, 0, (last - first) * dim * sizeof(uint32_t));
}

// The output over some keys before division: sums of weights * values, the weights relative to 2^most.
struct Partial {
  float most, total;
  alignas(64) float out[MAX_DIM];
};

inline void merge(Partial& into, const Partial& part, int64_t dim) {
  float most = std::max(into.most, part.most);
  const float keep = exp2(splat(into.most - most))[0], take = exp2(splat(part.most - most))[0];
  for (int64_t d = 0; d < dim; d += LANES)
    store(into.out + d, fma(load<f32x16>(part.out + d), splat(take), load<f32x16>(into.out + d) * splat(keep)));
  into.total = into.total * keep + part.total * take;
  into.most = most;
}

// One layer and KV head of one sequence.
struct Keys {
  const Cache& cache;
  const int32_t* table;
  int64_t layer, head;
  float cap = 0;  // of scores, in powers of 2; 0: none

  const uint32_t* block(int64_t position) const { return cache.keys(table[position / cache.block_size], layer, head); }
  const uint32_t* keys(int64_t position) const { return block(position) + position % cache.block_size; }
  const uint32_t* values(int64_t position) const {
    const int64_t size = cache.block_size;
    return block(position) + size * cache.dim / 2 + position % size / 2 * cache.dim;
  }
};

// The span that will most likely be read next: keys [begin, end) of `kv`. Blocks are scattered and the hardware's own prefetch stops at
// the end of a page, so they are asked for while the span at hand is computed; into the second level of cache, which takes more
// requests at once than the first (scattered 8 KiB read by two cores: 20 GB/s unasked, 22 asked into the first, 28 into the second).
struct Ahead {
  const Keys* kv;
  int64_t begin, end;

  // What to ask for while the keys (or values) `offset` positions into this span are used; null where the next one is shorter.
  // Shares of a block's memory: all of its positions together ask for all of it.
  const uint32_t* keys(int64_t offset) const {
    const int64_t at = begin + offset;
    return at < end ? kv->block(at) + at % kv->cache.block_size * (kv->cache.dim / 2) : nullptr;
  }
  const uint32_t* values(int64_t offset) const {
    const int64_t at = begin + offset;
    return at < end ? kv->values(at) : nullptr;
  }
};

// out[r][..] = scores of V * 16 keys from `position` for R queries; the keys are in one block.
template <int R, int V, bool ASK>
inline void scores(const Keys& kv, int64_t position, const Pair* const* queries, const uint32_t* ahead, float (*out)[SPAN]) {
  const int64_t size = kv.cache.block_size, pairs = kv.cache.dim / 2;
  const uint32_t* keys = kv.keys(position);
  f32x16 acc[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) acc[r][v] = f32x16{};
  for (int64_t d = 0; d < pairs; d++) {
    for (int v = 0; v < V && ASK; v++) _mm_prefetch(ahead + (d * V + v) * LANES, _MM_HINT_T1);
    u32x16 k[V];
    for (int v = 0; v < V; v++) k[v] = load<u32x16>(keys + d * size + v * LANES);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) acc[r][v] = dot2(acc[r][v], k[v], queries[r][d]);
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(out[r] + position % SPAN + v * LANES, acc[r][v]);
}

// Turn one query's scores of `vectors` * 16 keys from `position` into weights; keys outside [low, high) get none. ALL: none is outside.
template <bool ALL>
inline void weigh(float* scores, int vectors, int64_t position, int64_t low, int64_t high, Pair* weights, Partial& part) {
  auto seen = [&](int v) {
    const i32x16 place = lanes() + (int32_t)(position + v * LANES);
    return (i32x16)(place >= (int32_t)low) & (i32x16)(place < (int32_t)high);
  };
  f32x16 most = splat(HIDDEN);
  for (int v = 0; v < vectors; v++) {
    const f32x16 s = load<f32x16>(scores + v * LANES);
    most = max(most, ALL ? s : select(seen(v), s, splat(HIDDEN)));
  }
  part.most = largest(most);
  f32x16 total{};
  for (int v = 0; v < vectors; v += 2) {
    f32x16 p[2] = {};
    for (int i = 0; i < 2 && v + i < vectors; i++) {
      p[i] = coarse_exp2(load<f32x16>(scores + (v + i) * LANES) - splat(part.most));
      if constexpr (!ALL) p[i] = (f32x16)((i32x16)p[i] & seen(v + i));
      total += p[i];
    }
    pairs_of(weights + v * LANES / 2, p[0], p[1]);
  }
  part.total = sum(total);
}

// acc[r] += weights * values over 16 keys, for 16 V dimensions; weights[r] holds 8 pairs.
template <int R, int V, bool ASK>
inline void gather(const uint32_t* values, int64_t dim, const Pair (*weights)[SPAN / 2], const uint32_t* ahead, f32x16 (*acc)[V]) {
  for (int p = 0; p < LANES / 2; p++) {
    for (int v = 0; v < V && ASK; v++) _mm_prefetch(ahead + p * dim + v * LANES, _MM_HINT_T1);
    u32x16 pairs[V];
    for (int v = 0; v < V; v++) pairs[v] = load<u32x16>(values + p * dim + v * LANES);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) acc[r][v] = dot2(acc[r][v], pairs[v], weights[r][p]);
  }
}

// part[r].out[from .. from + 16 V) = weights * values over `vectors` * 16 keys from `position`.
template <int R, int V>
inline void gather(const Keys& kv, const Ahead* ahead, int64_t position, int vectors, const Pair (*weights)[SPAN / 2],
                   int64_t from, Partial* part) {
  const int64_t dim = kv.cache.dim;
  f32x16 acc[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) acc[r][v] = f32x16{};
  for (int i = 0; i < vectors; i++) {
    const uint32_t* values = kv.values(position + i * LANES) + from;
    const uint32_t* next = ahead ? ahead->values(position % SPAN + i * LANES) : nullptr;
    const auto at = (const Pair(*)[SPAN / 2])(weights[0] + i * LANES / 2);
    if (next) gather<R, V, true>(values, dim, at, next + from, acc);
    else gather<R, V, false>(values, dim, at, nullptr, acc);
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(part[r].out + from + v * LANES, acc[r][v]);
}

// Partial results of R queries over the keys of the span that begins at `begin`. Query r sees keys [low[r], high[r]).
template <int R>
inline void span_of(const Keys& kv, const Ahead* ahead, int64_t begin, const Pair* const* queries, const int64_t* low,
                    const int64_t* high, Partial* part) {
  alignas(64) float s[R][SPAN];
  alignas(64) Pair weights[R][SPAN / 2];
  int64_t lowest = *std::min_element(low, low + R), highest = *std::max_element(high, high + R);
  const int64_t position = begin + std::max<int64_t>(lowest - begin, 0) / LANES * LANES;
  const int vectors = (int)((std::min<int64_t>(highest, begin + SPAN) - position + LANES - 1) / LANES);
  const bool wide = kv.cache.block_size % (KEYS<R> * LANES) == 0;
  for (int v = 0; v < vectors;) {
    const int64_t at = position + v * LANES;
    const uint32_t* next = ahead ? ahead->keys(at - begin) : nullptr;
    const int count = wide && v + KEYS<R> <= vectors && at % (KEYS<R> * LANES) == 0 ? KEYS<R> : 1;
    if (count == KEYS<R>) next ? scores<R, KEYS<R>, true>(kv, at, queries, next, s) : scores<R, KEYS<R>, false>(kv, at, queries, next, s);
    else next ? scores<R, 1, true>(kv, at, queries, next, s) : scores<R, 1, false>(kv, at, queries, next, s);
    v += count;
  }
  for (int r = 0; r < R && kv.cap; r++) {
    float* some = s[r] + position % SPAN;
    for (int v = 0; v < vectors; v++) store(some + v * LANES, capped(load<f32x16>(some + v * LANES), kv.cap));
  }
  for (int r = 0; r < R; r++) {
    const bool all = low[r] <= position && high[r] >= position + vectors * LANES;
    (all ? weigh<true> : weigh<false>)(s[r] + position % SPAN, vectors, position, low[r], high[r], weights[r], part[r]);
  }
  const int64_t dim = kv.cache.dim;
  int64_t d = 0;
  for (; d + DIMS<R> * LANES <= dim; d += DIMS<R> * LANES) gather<R, DIMS<R>>(kv, ahead, position, vectors, weights, d, part);
  for (; d < dim; d += LANES) gather<R, 1>(kv, ahead, position, vectors, weights, d, part);
}

// First key that the query at `position` sees under a window (0: none).
inline int64_t oldest(int64_t position, int64_t window) { return window ? std::max<int64_t>(0, position + 1 - window) : 0; }

// Up to QUERIES query rows of one chunk and KV head: (row, head of the group), numbered row by row.
struct Bundle {
  int count;
  int64_t row[QUERIES], low[QUERIES], high[QUERIES];
  const Pair* query[QUERIES];
  int64_t head[QUERIES];

  int64_t lowest() const { return *std::min_element(low, low + count); }
  int64_t highest() const { return *std::max_element(high, high + count); }
};

template <int R = QUERIES>
inline void span_of(const Keys& kv, const Ahead* ahead, int64_t begin, const Bundle& bundle, Partial* part) {
  if (bundle.count == R) return span_of<R>(kv, ahead, begin, bundle.query, bundle.low, bundle.high, part);
  if constexpr (R > 1) span_of<R - 1>(kv, ahead, begin, bundle, part);
}

inline void copy(Partial& to, const Partial& from, int64_t dim) {
  to.most = from.most, to.total = from.total;
  std::memcpy(to.out, from.out, dim * sizeof(float));
}

constexpr int RUN = 8 * QUERIES;  // query rows of one task of a prompt

// All keys of `count` bundles, RUN rows at most: a span stays in cache while all of them use it. Results, fp32 [dim], go to
// out + (row * heads + head) * dim.
inline void attend(const Keys& kv, const Bundle* bundles, int count, int64_t heads, float* out) {
  const int64_t dim = kv.cache.dim;
  Partial running[RUN], part[QUERIES];
  bool begun[RUN] = {};
  int64_t lowest = bundles[0].lowest(), highest = bundles[0].highest();
  for (const Bundle* b = bundles + 1; b < bundles + count; b++) lowest = std::min(lowest, b->lowest()), highest = std::max(highest, b->highest());
  for (int64_t begin = lowest / SPAN * SPAN; begin < highest; begin += SPAN) {
    const Ahead ahead{&kv, begin + SPAN, highest};
    for (int b = 0; b < count; b++) {
      const Bundle& some = bundles[b];
      if (some.lowest() >= begin + SPAN || some.highest() <= begin) continue;
      span_of(kv, b ? nullptr : &ahead, begin, some, part);
      for (int r = 0; r < some.count; r++) {
        const int i = b * QUERIES + r;
        if (some.low[r] >= begin + SPAN || some.high[r] <= begin) continue;
        if (begun[i]) merge(running[i], part[r], dim);
        else copy(running[i], part[r], dim), begun[i] = true;
      }
    }
  }
  for (int b = 0; b < count; b++)
    for (int r = 0; r < bundles[b].count; r++) {
      const Partial& result = running[b * QUERIES + r];
      float* to = out + (bundles[b].row[r] * heads + bundles[b].head[r]) * dim;
      for (int64_t d = 0; d < dim; d += LANES) store(to + d, load<f32x16>(result.out + d) / splat(result.total));
    }
}

}  // namespace headrace
