// A decoder's forward pass in one call, as engine/cpu/decoder.py states it in torch. What model families differ in comes with the
// model: norms and biases that are null where a family has none, windows, rotation by layer, the activation of the gate, scales and caps.
#pragma once

#include "attention_step.h"
#include "tiles.h"

namespace headrace {

struct Layer {
  Matrix q, k, v, o, gate, up, down;
  const float *input_norm, *post_norm;             // [hidden], or null
  const float *after_attention_norm, *after_mlp_norm;  // of what attention and MLP give: [hidden], or null
  const float *q_norm, *k_norm;                    // [dim], or null
  const float *wide_q_norm, *wide_k_norm;          // [heads * dim], [kv_heads * dim], or null
  const float *q_bias, *k_bias, *v_bias, *o_bias;  // [outputs], or null
  const float *gate_bias, *up_bias, *down_bias;
  const float *cos, *sin;  // [positions, rotated / 2], or null
  int64_t window;          // newest keys seen, 0 for all
};

struct Model {
  Heads heads;
  int64_t hidden, intermediate, layers, activation;  // of the gate: an `Activation`
  float eps;
  float embedding_scale, residual_scale, logit_scale;  // 1 where a family has none
  float final_soft_cap;                                // of logits; 0: none
  const Layer* layer;
  Matrix embedding, head;
  const float* final_norm;
};

struct Step {
  int64_t rows, chunks;
  const int64_t* tokens;  // [rows]
  const Chunk* chunk;
};

// Products of one matrix cut into tasks of EACH tiles and at most SEGMENT rows, so that members end a phase together.
struct Tasks {
  static constexpr int EACH = std::max(TILES, 2);
  static constexpr int64_t SEGMENT = AT_ONCE;
  const Matrix& w;
  int64_t rows;
  int members;  // who take tasks in turn

  int groups() const { return (w.tiles() + EACH - 1) / EACH; }
  int segments() const { return (int)((rows + SEGMENT - 1) / SEGMENT); }
  int count() const { return groups() * segments(); }

  // emit(row, tile, outputs) for task i.
  template <class Emit>
  void run(int i, const Activations& in, Emit&& emit) const {
    const int first = i % groups() * EACH, count = std::min(EACH, w.tiles() - first), segment = i / groups();
    const int64_t begin = rows * segment / segments(), end = rows * (segment + 1) / segments();
    Tile tiles[EACH];
    for (int t = 0; t < count; t++) tiles[t] = w.tile(first + t, members * EACH);
    if (TILES == 1 || end - begin == 1) in_order(tiles, count);
    products(w.kind, tiles, count, in.from(begin), end - begin,
             [&](int64_t r, int t, f32x16 sums) { emit(begin + r, first + t, sums); });
  }
};

// A phase: emit(row, tile, outputs) for all rows and all tiles of a matrix.
template <class Emit>
inline void each_output(Team& team, const Matrix& w, const Activations& in, int64_t rows, Emit&& emit) {
  const Tasks tasks{w, rows, team.size()};
  team.each(tasks.count(), [&](int i) { tasks.run(i, in, emit); });
}

// out [rows, outputs] = in [rows, columns] * w^T. A phase; outputs need not fill the last tile.
inline void linear(Team& team, const Matrix& w, const Activations& in, int64_t rows, float* out) {
  each_output(team, w, in, rows, [&](int64_t r, int tile, f32x16 sums) {
    const int64_t at = (int64_t)tile * TILE;
    std::memcpy(out + r * w.outputs + at, &sums, std::min<int64_t>(TILE, w.outputs - at) * sizeof(float));
  });
}

inline f32x16 bias_of(const float* bias, int tile) { return bias ? load<f32x16>(bias + tile * TILE) : f32x16{}; }

class Decoder {
 public:
  Decoder(const Model& model, Team& team)
      : model_(model), team_(team), attention_(model.heads, team.size()), last_(model.heads, team.size()) {}

  // out: [rows wanted, hidden], their results after the final norm, in order. The last layer computes keys and values of all rows, and
  // everything after them for rows that are wanted: of a prompt's chunk that is one, or none.
  void forward(const Step& step, const Cache& cache, float* out) {
    const int64_t rows = step.rows, end = model_.layers - 1, width = model_.hidden;
    float* hidden = hidden_.at_least(rows * width);
    normed_ = normed_memory_.at_least(rows, width);
    inner_ = inner_memory_.at_least(rows, model_.intermediate);
    mixed_ = mixed_memory_.at_least(rows, model_.heads.width());
    qkv_.at_least(rows * model_.heads.qkv());
    outputs_.at_least(rows * model_.heads.width());
    added_.at_least(rows * width);
    attention_.plan(rows, step.chunks, step.chunk);
    select(step);
    const int64_t wanted = (int64_t)source_.size();
    last_.plan(wanted, (int64_t)chosen_.size(), chosen_.data());
    team_.run([&](int) {
      team_.each_row(rows, [&](int r) {
        embed(model_.embedding, step.tokens[r], hidden + r * width);
        if (model_.embedding_scale != 1) scale_and_cap(hidden + r * width, width, model_.embedding_scale, 0);
      });
      for (int64_t l = 0; l < end; l++) {
        place(model_.layer[l], l, rows, cache, hidden);
        attend(attention_, model_.layer[l], l, rows, cache, hidden);
        feed_forward(model_.layer[l], rows, hidden);
      }
      place(model_.layer[end], end, rows, cache, hidden);
      team_.each_row(wanted, [&](int r) {
        std::memcpy(out + r * width, hidden + source_[r] * width, width * sizeof(float));
        last_.take(r, attention_, source_[r]);
      });
      attend(last_, model_.layer[end], end, wanted, cache, out);
      feed_forward(model_.layer[end], wanted, out);
      team_.each_row(wanted, [&](int r) { norm(out + r * width, model_.final_norm, width, model_.eps); });
    });
  }

  // out: [rows, vocabulary].
  void logits(const float* hidden, int64_t rows, float* out) {
    Activations in = normed_memory_.at_least(rows, model_.hidden);
    team_.run([&](int) {
      team_.each_row(rows, [&](int r) { quantize_row(hidden + r * model_.hidden, in, r); });
      linear(team_, model_.head, in, rows, out);
      if (model_.logit_scale == 1 && !model_.final_soft_cap) return;
      const int64_t tokens = model_.head.outputs;
      team_.each_row(rows, [&](int r) { scale_and_cap(out + r * tokens, tokens, model_.logit_scale, model_.final_soft_cap); });
    });
  }

 private:
  // The chunks of wanted rows as a step of their own.
  void select(const Step& step) {
    source_.clear();
    chosen_.clear();
    for (const Chunk* c = step.chunk; c < step.chunk + step.chunks; c++) {
      const int64_t skipped = c->rows - c->wanted;
      if (c->wanted) chosen_.push_back({(int64_t)source_.size(), c->wanted, c->start + skipped, c->wanted, c->table});
      for (int64_t r = skipped; r < c->rows; r++) source_.push_back(c->first + r);
    }
  }

  // Queries, keys and values of all rows; keys and values into the cache.
  void place(const Layer& layer, int64_t index, int64_t rows, const Cache& cache, const float* hidden) {
    const Turn turn{layer.q_norm, layer.k_norm, layer.wide_q_norm, layer.wide_k_norm, model_.eps, layer.cos, layer.sin};
    const int64_t stride = model_.heads.qkv();
    team_.each_row(rows, [&](int r) {
      norm_quantize(hidden + r * model_.hidden, layer.input_norm, model_.eps, normed_, r);
    });
    project(layer, rows, stride);
    team_.each_row(rows, [&](int r) { attention_.place(r, qkv_.get() + r * stride, turn, cache, index); });
  }

  void attend(AttentionStep& attention, const Layer& layer, int64_t index, int64_t rows, const Cache& cache, float* hidden) {
    const int64_t width = model_.heads.width();
    float* outputs = outputs_.get();
    team_.each(attention.tasks(), [&](int i) { attention.task(i, cache, index, layer.window, outputs); });
    team_.each_row(rows, [&](int r) {
      attention.finish(r, layer.window, outputs);
      quantize_row(outputs + r * width, mixed_, r);
    });
    add_linear(hidden, layer.o, layer.o_bias, layer.after_attention_norm, mixed_, rows);
  }

  // Queries, keys and values: one phase over the tiles of three matrices.
  void project(const Layer& layer, int64_t rows, int64_t stride) {
    const Tasks parts[] = {{layer.q, rows, team_.size()}, {layer.k, rows, team_.size()}, {layer.v, rows, team_.size()}};
    const float* biases[] = {layer.q_bias, layer.k_bias, layer.v_bias};
    const int64_t begin[] = {0, layer.q.outputs, layer.q.outputs + layer.k.outputs};
    team_.each(parts[0].count() + parts[1].count() + parts[2].count(), [&](int i) {
      int part = 0;
      while (i >= parts[part].count()) i -= parts[part++].count();
      float* out = qkv_.get() + begin[part];
      parts[part].run(i, normed_, [&](int64_t r, int tile, f32x16 sums) {
        store(out + r * stride + tile * TILE, sums + bias_of(biases[part], tile));
      });
    });
  }

  void feed_forward(const Layer& layer, int64_t rows, float* hidden) {
    team_.each_row(rows, [&](int r) {
      norm_quantize(hidden + r * model_.hidden, layer.post_norm, model_.eps, normed_, r);
    });
    const int units = (int)(model_.intermediate / GROUP), segments = Tasks{layer.gate, rows, team_.size()}.segments();
    team_.each(units * segments, [&](int i) {
      const int64_t segment = i / units;
      const int64_t begin = rows * segment / segments, end = rows * (segment + 1) / segments;
      switch (model_.activation) {
        case GELU_TANH: return gated<GELU_TANH>(layer, i % units, begin, end);
        default: return gated<SILU>(layer, i % units, begin, end);
      }
    });
    add_linear(hidden, layer.down, layer.down_bias, layer.after_mlp_norm, inner_, rows);
  }

  // 32 columns of activation(gate) * up, quantized at once: they are one group of the next product's input.
  template <Activation ACTIVATION>
  void gated(const Layer& layer, int unit, int64_t first_row, int64_t end) {
    const Matrix &gate = layer.gate, &up = layer.up;
    const int at = 2 * unit, skip = 2 * team_.size();
    Tile tiles[] = {gate.tile(at, skip), gate.tile(at + 1, skip), up.tile(at, skip), up.tile(at + 1, skip)};
    if (TILES == 1 || end - first_row == 1) in_order(tiles, 4);
    f32x16 bias[4], out[CHUNK][4];
    for (int i = 0; i < 4; i++) bias[i] = bias_of(i < 2 ? layer.gate_bias : layer.up_bias, at + i % 2);
    for (int64_t begin = first_row; begin < end; begin += CHUNK) {
      const int64_t count = std::min(CHUNK, end - begin);
      const Activations some = normed_.from(begin);
      auto keep = [&](int first) { return [&, first](int64_t r, int t, f32x16 sums) { out[r][first + t] = sums + bias[first + t]; }; };
      if (gate.kind == up.kind) {
        products(gate.kind, tiles, 4, some, count, keep(0));
      } else {
        products(gate.kind, tiles, 2, some, count, keep(0));
        products(up.kind, tiles + 2, 2, some, count, keep(2));
      }
      for (int64_t r = 0; r < count; r++)
        quantize(activate<ACTIVATION>(out[r][0]) * out[r][2], activate<ACTIVATION>(out[r][1]) * out[r][3],
                 inner_.row(begin + r) + unit * GROUP, inner_.scale(begin + r) + unit);
    }
  }

  // Rows of `gated` between product and quantization.
  static constexpr int64_t CHUNK = HAS_TILES || TILES == 1 ? AT_ONCE : 4 * ROWS;

  // What attention or MLP gives onto the residual, after its norm where a family has one.
  void add_linear(float* hidden, const Matrix& w, const float* bias, const float* after, const Activations& in, int64_t rows) {
    const int64_t width = model_.hidden;
    const float scale = model_.residual_scale;
    if (!after) {
      each_output(team_, w, in, rows, [&](int64_t r, int tile, f32x16 sums) {
        float* to = hidden + r * width + tile * TILE;
        store(to, load<f32x16>(to) + (sums + bias_of(bias, tile)) * splat(scale));
      });
      return;
    }
    float* added = added_.get();
    each_output(team_, w, in, rows, [&](int64_t r, int tile, f32x16 sums) {
      store(added + r * width + tile * TILE, sums + bias_of(bias, tile));
    });
    team_.each_row(rows, [&](int r) {
      norm(added + r * width, after, width, model_.eps);
      add_row(hidden + r * width, added + r * width, width, scale);
    });
  }

  const Model model_;
  Team& team_;
  AttentionStep attention_, last_;  // of all rows; of those that are wanted
  std::vector<Chunk> chosen_;
  std::vector<int64_t> source_;  // the row of each row that is wanted
  ActivationMemory normed_memory_, inner_memory_, mixed_memory_;
  Activations normed_{}, inner_{}, mixed_{};
  Buffer<float> hidden_, qkv_, outputs_, added_;
};

}  // namespace headrace
