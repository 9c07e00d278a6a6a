// Attention of all rows of a step: who attends to what is planned once, then run for every layer.
#pragma once

#include "attention.h"
#include "team.h"

namespace headrace {

// Heads of a model. Query heads [h * group, (h + 1) * group) share KV head h.
struct Heads {
  int64_t heads, kv_heads, dim;
  int64_t rotated;        // the first dimensions of each, which positions turn
  float scale, soft_cap;  // of scores; 0: 1 / sqrt(dim), and no cap

  int64_t group() const { return heads / kv_heads; }
  int64_t width() const { return heads * dim; }                    // of the queries and of the output
  int64_t qkv() const { return (heads + 2 * kv_heads) * dim; }     // queries, keys, values side by side
};

// What norms and turns queries and keys: each head by [dim], or all heads as one by [heads * dim] and [kv_heads * dim], or not at all
// where both are null. cos and sin are [positions, rotated / 2], or null.
struct Turn {
  const float *q_norm, *k_norm;
  const float *wide_q_norm, *wide_k_norm;
  float eps;
  const float *cos, *sin;
};

class AttentionStep {
 public:
  AttentionStep(const Heads& heads, int members) : heads_(heads), members_(members) {}

  // Several tokens of one sequence are cut into runs of query rows. A single token is cut into its spans of keys, so that all
  // members work on one long sequence; `finish` merges them. The longest items come first: no member is left with one at the end.
  void plan(int64_t rows, int64_t chunks, const Chunk* chunk) {
    queries_.at_least(rows * heads_.width() / 2);
    chunk_of_.at_least(rows);
    slot_of_.at_least(rows);
    items_.clear();
    slots_ = 0;
    for (const Chunk* c = chunk; c < chunk + chunks; c++) {
      for (int64_t r = 0; r < c->rows; r++) chunk_of_.get()[c->first + r] = c;
      if (c->rows > 1) plan_runs(c);
      else plan_spans(c);
    }
    std::stable_sort(items_.begin(), items_.end(), [](const Item& a, const Item& b) { return a.work > b.work; });
    partials_.at_least(slots_ * heads_.kv_heads);
  }

  // Turn one row's queries and keys (in place), store keys and values, keep the queries as pairs, scaled for exp2.
  void place(int64_t row, float* qkv, const Turn& by, const Cache& cache, int64_t layer) {
    const Chunk& chunk = *chunk_of_.get()[row];
    const int64_t dim = heads_.dim, position = chunk.start + row - chunk.first;
    const float scale = heads_.scale ? LOG2E * heads_.scale : LOG2E / std::sqrt((float)dim);
    if (by.wide_q_norm) norm(qkv, by.wide_q_norm, heads_.width(), by.eps);
    if (by.wide_k_norm) norm(qkv + heads_.width(), by.wide_k_norm, heads_.kv_heads * dim, by.eps);
    for (int64_t h = 0; h < heads_.heads; h++) {
      float* query = qkv + h * dim;
      norm_and_turn(query, by.q_norm, by, position);
      Pair* pairs = queries_.get() + (row * heads_.heads + h) * dim / 2;
      for (int64_t d = 0; d < dim / 2; d++) pairs[d] = pair(query[2 * d] * scale, query[2 * d + 1] * scale);
    }
    const bool newest = row == chunk.first + chunk.rows - 1;
    for (int64_t h = 0; h < heads_.kv_heads; h++) {
      float *key = qkv + heads_.width() + h * dim, *value = key + heads_.kv_heads * dim;
      norm_and_turn(key, by.k_norm, by, position);
      write_token(cache, chunk.table, layer, h, position, key, value);
      if (newest) close_values(cache, chunk.table, layer, h, position);
    }
  }

  // Have the queries of `other`'s row `from` as row `row`; its keys are placed there.
  void take(int64_t row, const AttentionStep& other, int64_t from) {
    const int64_t pairs = heads_.width() / 2;
    std::memcpy(queries_.get() + row * pairs, other.queries_.get() + from * pairs, pairs * sizeof(Pair));
  }

  // Tasks of one layer; task(i, ..) for i in [0, tasks()) after every row is placed.
  int tasks() const { return (int)(items_.size() * heads_.kv_heads); }

  void task(int i, const Cache& cache, int64_t layer, int64_t window, float* out) {
    const Item& item = items_[i / heads_.kv_heads];
    const int64_t kv_head = i % heads_.kv_heads;
    const Keys kv{cache, item.chunk->table, layer, kv_head, heads_.soft_cap * LOG2E};
    if (item.span >= 0) return one_span(i, item, kv, window);
    Bundle bundles[RUN / QUERIES];
    int count = 0;
    for (int64_t done = 0; done < item.count; done += QUERIES)
      bundles[count++] = bundle(*item.chunk, item.from + done, std::min<int64_t>(QUERIES, item.count - done), kv_head, window);
    attend(kv, bundles, count, heads_.heads, out);
  }

  // After all tasks: row's output fp32 [heads * dim] is whole.
  void finish(int64_t row, int64_t window, float* out) {
    const Chunk& chunk = *chunk_of_.get()[row];
    if (chunk.rows > 1) return;
    const int64_t group = heads_.group(), dim = heads_.dim;
    const int64_t first = oldest(chunk.start, window) / SPAN, last = chunk.start / SPAN;
    for (int64_t h = 0; h < heads_.heads; h++) {
      const Partial* spans = partials_.get() + h / group * slots_ + slot_of_.get()[row] + h % group;
      Partial result;
      copy(result, spans[first * group], dim);
      for (int64_t s = first + 1; s <= last; s++) merge(result, spans[s * group], dim);
      float* to = out + row * heads_.width() + h * dim;
      for (int64_t d = 0; d < dim; d += LANES) store(to + d, load<f32x16>(result.out + d) / splat(result.total));
    }
  }

 private:
  struct Item {
    const Chunk* chunk;
    int64_t from, count;  // query rows: (row of the chunk) * group + head of the group
    int64_t span;         // -1: all
    int64_t slot;         // of the first partial result
    int64_t work;         // query rows times keys
  };

  void norm_and_turn(float* head, const float* weight, const Turn& by, int64_t position) const {
    if (weight) norm(head, weight, heads_.dim, by.eps);
    const int64_t at = position * heads_.rotated / 2;
    if (by.cos) turn(head, heads_.rotated, by.cos + at, by.sin + at);
  }

  // Every member takes tasks in turn, so what this one will read next is most likely that of the task `members` further on.
  void one_span(int i, const Item& item, const Keys& kv, int64_t window) {
    const Bundle rows = bundle(*item.chunk, item.from, item.count, kv.head, window);
    if ((item.span + 1) * SPAN <= rows.low[0]) return;
    const int then = i + members_;
    const Item* next = then < tasks() ? &items_[then / heads_.kv_heads] : nullptr;
    const Keys keys{kv.cache, next ? next->chunk->table : nullptr, kv.layer, then % heads_.kv_heads};
    const Ahead ahead{&keys, next ? next->span * SPAN : 0, next ? end_of(*next) : 0};
    span_of(kv, next && next->span >= 0 ? &ahead : nullptr, item.span * SPAN, rows, partials_.get() + kv.head * slots_ + item.slot);
  }

  // Where the vectors of keys of a span end.
  static int64_t end_of(const Item& item) {
    return std::min((item.span + 1) * SPAN, (item.chunk->start / LANES + 1) * LANES);
  }

  void plan_runs(const Chunk* c) {
    const int64_t group = heads_.group();
    for (int64_t end = c->rows * group; end > 0;) {
      const int64_t from = (end - 1) / RUN * RUN;
      items_.push_back({c, from, end - from, -1, 0, (end - from) * (c->start + end / group)});
      end = from;
    }
  }

  void plan_spans(const Chunk* c) {
    const int64_t group = heads_.group();
    slot_of_.get()[c->first] = slots_;
    for (int64_t span = 0; span * SPAN <= c->start; span++, slots_ += group)
      for (int64_t from = 0; from < group; from += QUERIES) {
        const int64_t count = std::min<int64_t>(QUERIES, group - from);
        items_.push_back({c, from, count, span, slots_ + from, count * std::min(SPAN, c->start + 1 - span * SPAN)});
      }
  }

  Bundle bundle(const Chunk& chunk, int64_t from, int64_t count, int64_t kv_head, int64_t window) const {
    const int64_t group = heads_.group();
    Bundle out;
    out.count = (int)count;
    for (int64_t i = 0; i < count; i++) {
      int64_t row = (from + i) / group, position = chunk.start + row;
      out.row[i] = chunk.first + row;
      out.head[i] = kv_head * group + (from + i) % group;
      out.low[i] = oldest(position, window);
      out.high[i] = position + 1;
      out.query[i] = queries_.get() + (out.row[i] * heads_.heads + out.head[i]) * heads_.dim / 2;
    }
    return out;
  }

  const Heads heads_;
  const int members_;
  std::vector<Item> items_;
  int64_t slots_ = 0;
  Buffer<Pair> queries_;
  Buffer<Partial> partials_;
  Buffer<const Chunk*> chunk_of_;  // of each row
  Buffer<int64_t> slot_of_;        // of a single token: its first partial result
};

}  // namespace headrace
