// A decoder's forward pass in one call: llama, mistral, qwen2 and qwen3, as engine/decoder.py states them in torch.
//
// The C interface at the end is what kernels/cpu/native.py binds. All memory that is passed in belongs to the caller and must
// outlive the model; nothing is allocated in a step that is not larger than every step before.
#include <cmath>
#include <memory>

#include "attention.h"
#include "team.h"

namespace headrace {

struct Layer {
  Matrix q, k, v, o, gate, up, down;
  const float *input_norm, *post_norm;               // [hidden]
  const float *q_norm, *k_norm;                      // [dim], or null
  const float *q_bias, *k_bias, *v_bias, *o_bias;    // [outputs], or null
  const float *gate_bias, *up_bias, *down_bias;
  int64_t window;  // newest keys seen, 0 for all
};

struct Model {
  int64_t hidden, heads, kv_heads, dim, intermediate, layers;
  float eps;
  const Layer* layer;
  Matrix embedding, head;
  const float* final_norm;
  const float *cos, *sin;  // [positions, dim / 2]
};

struct Step {
  int64_t rows, chunks;
  const int64_t* tokens;  // [rows]
  const Chunk* chunk;
};

// Memory of one step, kept for the next.
template <class T>
class Buffer {
 public:
  T* at_least(int64_t count) {
    if (count > size_) {
      data_.reset((T*)std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64));
      size_ = count;
    }
    return data_.get();
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

struct ActivationBuffer {
  Buffer<int8_t> x;
  Buffer<Scale> scales;
  Activations at_least(int64_t rows, int64_t columns) {
    return {x.at_least(rows * columns), scales.at_least(rows * columns / GROUP), columns};
  }
};

inline float inverse_rms(const float* x, int64_t size, float eps) {
  f32x16 squares{};
  for (int64_t i = 0; i < size; i += LANES) {
    f32x16 v = load<f32x16>(x + i);
    squares = fma(v, v, squares);
  }
  return 1.0f / std::sqrt(sum(squares) / (float)size + eps);
}

inline void quantize_row(const float* x, const Activations& to, int64_t row) {
  for (int64_t g = 0; g < to.columns / GROUP; g++)
    quantize(load<f32x16>(x + g * GROUP), load<f32x16>(x + g * GROUP + LANES), to.row(row) + g * GROUP, to.scale(row) + g);
}

inline void norm_quantize(const float* x, const float* weight, float eps, const Activations& to, int64_t row) {
  f32x16 scale = splat(inverse_rms(x, to.columns, eps));
  for (int64_t g = 0; g < to.columns / GROUP; g++) {
    f32x16 part[2];
    for (int i = 0; i < 2; i++) {
      int64_t at = g * GROUP + i * LANES;
      part[i] = load<f32x16>(x + at) * scale * load<f32x16>(weight + at);
    }
    quantize(part[0], part[1], to.row(row) + g * GROUP, to.scale(row) + g);
  }
}

inline void embed(const Matrix& table, int64_t token, float* out) {
  const uint8_t* tile = table.tile(token / TILE);
  const int lane = (int)(token % TILE);
  for (int g = 0; g < table.groups(); g++) {
    const uint8_t* record = tile + g * table.record();
    const float d = half(record)[lane];
    if (table.bits == 8) {
      for (int c = 0; c < GROUP; c++) out[g * GROUP + c] = d * (float)(record[32 + c / 4 * 64 + lane * 4 + c % 4] - 128);
      continue;
    }
    const float m = half(record + 32)[lane];
    for (int c = 0; c < GROUP; c++) {
      uint8_t both = record[64 + c % 16 / 4 * 64 + lane * 4 + c % 4];
      out[g * GROUP + c] = d * (float)(c < 16 ? both & 15 : both >> 4) + m;
    }
  }
}

// Calls emit(row, outputs) for one tile of outputs and all rows. Rows are cut evenly, at most ROWS at a time.
template <class Emit>
inline void multiply(const Matrix& w, int tile, const Activations& in, int64_t rows, Emit&& emit) {
  f32x16 acc[ROWS];
  const int64_t cuts = (rows + ROWS - 1) / ROWS;
  for (int64_t cut = 0; cut < cuts; cut++) {
    int64_t first = rows * cut / cuts, last = rows * (cut + 1) / cuts;
    product(w, tile, in, first, (int)(last - first), acc);
    for (int64_t r = first; r < last; r++) emit(r, acc[r - first]);
  }
}

inline f32x16 bias_of(const float* bias, int tile) { return bias ? load<f32x16>(bias + tile * TILE) : f32x16{}; }

class Decoder {
 public:
  Decoder(const Model& model, int threads) : model_(model), team_(threads) {}

  void forward(const Step& step, const Cache& cache, float* hidden) {
    prepare(step);
    team_.run([&](int) {
      team_.each((int)step.rows, [&](int r) { embed(model_.embedding, step.tokens[r], hidden + r * model_.hidden); });
      for (int64_t l = 0; l < model_.layers; l++) {
        attention(model_.layer[l], l, step, cache, hidden);
        feed_forward(model_.layer[l], step.rows, hidden);
      }
      team_.each((int)step.rows, [&](int r) {
        float* row = hidden + r * model_.hidden;
        f32x16 scale = splat(inverse_rms(row, model_.hidden, model_.eps));
        for (int64_t i = 0; i < model_.hidden; i += LANES)
          store(row + i, load<f32x16>(row + i) * scale * load<f32x16>(model_.final_norm + i));
      });
    });
  }

  void logits(const float* hidden, int64_t rows, float* out) {
    Activations in = wide_.at_least(rows, model_.hidden);
    team_.run([&](int) {
      team_.each((int)rows, [&](int r) { quantize_row(hidden + r * model_.hidden, in, r); });
      tiles(model_.head, 8, [&](int tile) {
        multiply(model_.head, tile, in, rows, [&](int64_t r, f32x16 scores) {
          int64_t outputs = model_.head.outputs, at = (int64_t)tile * TILE;
          std::memcpy(out + r * outputs + at, &scores, std::min<int64_t>(TILE, outputs - at) * sizeof(float));
        });
      });
    });
  }

 private:
  // One phase over all tiles of a matrix, `grain` of them in a task.
  template <class Task>
  void tiles(const Matrix& w, int grain, Task&& task) {
    const int count = w.tiles();
    team_.each((count + grain - 1) / grain, [&](int i) {
      for (int tile = i * grain; tile < std::min(count, (i + 1) * grain); tile++) task(tile);
    });
  }

  void prepare(const Step& step) {
    const int64_t rows = step.rows, width = model_.heads * model_.dim;
    normed_ = wide_.at_least(rows, model_.hidden);
    inner_ = inner_buffer_.at_least(rows, model_.intermediate);
    mixed_ = mixed_buffer_.at_least(rows, width);
    qkv_.at_least(rows * (width + 2 * model_.kv_heads * model_.dim));
    queries_.at_least(rows * width / 2);
    outputs_.at_least(rows * width);
    row_chunk_.at_least(rows);
    row_slot_.at_least(rows);
    plan(step);
  }

  // Bundles of query rows for chunks of several tokens; for single tokens, one bundle for each span of keys.
  struct Item {
    const Chunk* chunk;
    int64_t from, count;  // query rows: (row of the chunk) * group + head of the group
    int64_t span;         // -1: all spans
    int64_t slot;         // where the partial results go
  };

  void plan(const Step& step) {
    const int64_t group = model_.heads / model_.kv_heads;
    items_.clear();
    slots_ = 0;
    for (int64_t c = 0; c < step.chunks; c++) {
      const Chunk& chunk = step.chunk[c];
      for (int64_t r = 0; r < chunk.rows; r++) row_chunk_.get()[chunk.first + r] = (int32_t)c;
      if (chunk.rows == 1) {
        row_slot_.get()[chunk.first] = slots_;
        for (int64_t span = 0; span * SPAN <= chunk.start; span++)
          for (int64_t from = 0; from < group; from += QUERIES)
            items_.push_back({&chunk, from, std::min<int64_t>(QUERIES, group - from), span, slots_ + span * group + from});
        slots_ += (chunk.start / SPAN + 1) * group;
        continue;
      }
      // Longest first, so that no member is left with a long item at the end.
      for (int64_t end = chunk.rows * group; end > 0;) {
        int64_t from = (end - 1) / TASK_QUERIES * TASK_QUERIES;
        items_.push_back({&chunk, from, end - from, -1, 0});
        end = from;
      }
    }
    partials_.at_least(slots_ * model_.kv_heads);
  }

  static constexpr int64_t TASK_QUERIES = 48;

  void attention(const Layer& layer, int64_t index, const Step& step, const Cache& cache, float* hidden) {
    const int64_t rows = step.rows, dim = model_.dim, kv_heads = model_.kv_heads, width = model_.heads * dim;
    const int64_t stride = width + 2 * kv_heads * dim;
    team_.each((int)rows, [&](int r) {
      norm_quantize(hidden + r * model_.hidden, layer.input_norm, model_.eps, normed_, r);
    });
    project(layer, rows, stride);
    team_.each((int)rows, [&](int r) { place(layer, index, step, cache, r, qkv_.get() + r * stride); });
    team_.each((int)(items_.size() * kv_heads), [&](int i) {
      work(items_[i / kv_heads], index, i % kv_heads, layer.window, cache);
    });
    team_.each((int)rows, [&](int r) {
      const Chunk& chunk = step.chunk[row_chunk_.get()[r]];
      if (chunk.rows == 1) combine(chunk, r, layer.window);
      quantize_row(outputs_.get() + r * width, mixed_, r);
    });
    tiles(layer.o, 2, [&](int tile) { add_to(hidden, layer.o, layer.o_bias, tile, mixed_, rows); });
  }

  void project(const Layer& layer, int64_t rows, int64_t stride) {
    const Matrix* parts[] = {&layer.q, &layer.k, &layer.v};
    const float* biases[] = {layer.q_bias, layer.k_bias, layer.v_bias};
    const int first[] = {0, layer.q.tiles(), layer.q.tiles() + layer.k.tiles()};
    const int64_t begin[] = {0, layer.q.outputs, layer.q.outputs + layer.k.outputs};
    const int count = first[2] + layer.v.tiles();
    team_.each((count + 1) / 2, [&](int task) {
      for (int t = 2 * task; t < std::min(count, 2 * task + 2); t++) {
        const int part = t >= first[2] ? 2 : t >= first[1] ? 1 : 0, tile = t - first[part];
        const f32x16 bias = bias_of(biases[part], tile);
        float* out = qkv_.get() + begin[part] + tile * TILE;
        multiply(*parts[part], tile, normed_, rows, [&](int64_t r, f32x16 sums) { store(out + r * stride, sums + bias); });
      }
    });
  }

  // Norm and turn one row's queries and keys; keys and values go to the cache, queries become pairs, scaled for exp2.
  void place(const Layer& layer, int64_t index, const Step& step, const Cache& cache, int64_t r, float* qkv) {
    const Chunk& chunk = step.chunk[row_chunk_.get()[r]];
    const int64_t dim = model_.dim, position = chunk.start + r - chunk.first;
    const float scale = LOG2E / std::sqrt((float)dim);
    for (int64_t h = 0; h < model_.heads; h++) {
      float* query = qkv + h * dim;
      turn(query, layer.q_norm, position);
      Pair* pairs = queries_.get() + (r * model_.heads + h) * dim / 2;
      for (int64_t d = 0; d < dim / 2; d++) pairs[d] = pair(query[2 * d] * scale, query[2 * d + 1] * scale);
    }
    float* keys = qkv + model_.heads * dim;
    for (int64_t h = 0; h < model_.kv_heads; h++) {
      turn(keys + h * dim, layer.k_norm, position);
      write_token(cache, chunk.table, index, h, position, keys + h * dim, keys + (model_.kv_heads + h) * dim);
      if (r == chunk.first + chunk.rows - 1) close_values(cache, chunk.table, index, h, position);
    }
  }

  void turn(float* x, const float* norm, int64_t position) const {
    const int64_t dim = model_.dim, half = dim / 2;
    if (norm) {
      f32x16 scale = splat(inverse_rms(x, dim, model_.eps));
      for (int64_t d = 0; d < dim; d += LANES) store(x + d, load<f32x16>(x + d) * scale * load<f32x16>(norm + d));
    }
    const float *cos = model_.cos + position * half, *sin = model_.sin + position * half;
    for (int64_t d = 0; d < half; d++) {
      float a = x[d], b = x[half + d];
      x[d] = a * cos[d] - b * sin[d];
      x[half + d] = b * cos[d] + a * sin[d];
    }
  }

  Bundle bundle(const Chunk& chunk, int64_t from, int64_t count, int64_t kv_head, int64_t window) const {
    const int64_t group = model_.heads / model_.kv_heads;
    Bundle out;
    out.count = (int)count;
    for (int64_t i = 0; i < count; i++) {
      int64_t row = (from + i) / group, position = chunk.start + row;
      out.row[i] = chunk.first + row;
      out.head[i] = kv_head * group + (from + i) % group;
      out.low[i] = oldest(position, window);
      out.high[i] = position + 1;
      out.query[i] = queries_.get() + (out.row[i] * model_.heads + out.head[i]) * model_.dim / 2;
    }
    return out;
  }

  void work(const Item& item, int64_t index, int64_t kv_head, int64_t window, const Cache& cache) {
    const Keys kv{cache, item.chunk->table, index, kv_head};
    for (int64_t done = 0; done < item.count; done += QUERIES) {
      Bundle some = bundle(*item.chunk, item.from + done, std::min<int64_t>(QUERIES, item.count - done), kv_head, window);
      if (item.span >= 0) {
        if ((item.span + 1) * SPAN > some.low[0])
          span_of(kv, item.span * SPAN, some.count, some.query, some.low, some.high,
                  partials_.get() + kv_head * slots_ + item.slot);
        continue;
      }
      float* out[QUERIES];
      for (int i = 0; i < some.count; i++) out[i] = outputs_.get() + (some.row[i] * model_.heads + some.head[i]) * model_.dim;
      attend(kv, some, out);
    }
  }

  // Merge the spans of a single token.
  void combine(const Chunk& chunk, int64_t row, int64_t window) {
    const int64_t group = model_.heads / model_.kv_heads, dim = model_.dim;
    const int64_t first = oldest(chunk.start, window) / SPAN, last = chunk.start / SPAN;
    for (int64_t h = 0; h < model_.heads; h++) {
      const Partial* spans = partials_.get() + h / group * slots_ + row_slot_.get()[row] + h % group;
      Partial result = spans[first * group];
      for (int64_t s = first + 1; s <= last; s++) merge(result, spans[s * group], dim);
      float* out = outputs_.get() + (row * model_.heads + h) * dim;
      for (int64_t d = 0; d < dim; d += LANES) store(out + d, load<f32x16>(result.out + d) / splat(result.total));
    }
  }

  void feed_forward(const Layer& layer, int64_t rows, float* hidden) {
    team_.each((int)rows, [&](int r) {
      norm_quantize(hidden + r * model_.hidden, layer.post_norm, model_.eps, normed_, r);
    });
    team_.each((int)(model_.intermediate / GROUP), [&](int unit) { gated(layer, unit, rows); });
    tiles(layer.down, 1, [&](int tile) { add_to(hidden, layer.down, layer.down_bias, tile, inner_, rows); });
  }

  // 32 columns of silu(gate) * up, quantized at once: they are one group of the next product's input.
  void gated(const Layer& layer, int unit, int64_t rows) {
    const int64_t cuts = (rows + ROWS - 1) / ROWS;
    f32x16 acc[4][ROWS], bias[4];
    for (int i = 0; i < 4; i++) bias[i] = bias_of(i < 2 ? layer.gate_bias : layer.up_bias, 2 * unit + i % 2);
    for (int64_t cut = 0; cut < cuts; cut++) {
      int64_t first = rows * cut / cuts, last = rows * (cut + 1) / cuts;
      for (int i = 0; i < 4; i++)
        product(i < 2 ? layer.gate : layer.up, 2 * unit + i % 2, normed_, first, (int)(last - first), acc[i]);
      for (int64_t r = first; r < last; r++) {
        f32x16 out[2];
        for (int i = 0; i < 2; i++) out[i] = silu(acc[i][r - first] + bias[i]) * (acc[2 + i][r - first] + bias[2 + i]);
        quantize(out[0], out[1], inner_.row(r) + unit * GROUP, inner_.scale(r) + unit);
      }
    }
  }

  void add_to(float* hidden, const Matrix& w, const float* bias, int tile, const Activations& in, int64_t rows) {
    const f32x16 more = bias_of(bias, tile);
    multiply(w, tile, in, rows, [&](int64_t r, f32x16 sums) {
      float* to = hidden + r * model_.hidden + tile * TILE;
      store(to, load<f32x16>(to) + (sums + more));
    });
  }

  const Model model_;
  Team team_;
  std::vector<Item> items_;
  int64_t slots_ = 0;
  ActivationBuffer wide_, inner_buffer_, mixed_buffer_;
  Activations normed_{}, inner_{}, mixed_{};
  Buffer<float> qkv_, outputs_;
  Buffer<Pair> queries_;
  Buffer<Partial> partials_;
  Buffer<int32_t> row_chunk_;  // the chunk of each row
  Buffer<int64_t> row_slot_;   // of a single token: its first partial result
};

}  // namespace headrace

// --- C interface ---------------------------------------------------------------------------------------------------------

using headrace::Activations;

extern "C" {

void* headrace_decoder(const headrace::Model* model, int32_t threads) { return new headrace::Decoder(*model, threads); }

void headrace_free(void* decoder) { delete static_cast<headrace::Decoder*>(decoder); }

void headrace_forward(void* decoder, const headrace::Step* step, const headrace::Cache* cache, float* hidden) {
  static_cast<headrace::Decoder*>(decoder)->forward(*step, *cache, hidden);
}

void headrace_logits(void* decoder, const float* hidden, int64_t rows, float* out) {
  static_cast<headrace::Decoder*>(decoder)->logits(hidden, rows, out);
}

}  // extern "C"
