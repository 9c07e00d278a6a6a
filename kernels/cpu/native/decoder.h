// A decoder's forward pass in one call: llama, mistral, qwen2 and qwen3, as engine/decoder.py states them in torch.
#pragma once

#include "attention_step.h"

namespace headrace {

struct Layer {
  Matrix q, k, v, o, gate, up, down;
  const float *input_norm, *post_norm;             // [hidden]
  const float *q_norm, *k_norm;                    // [dim], or null
  const float *q_bias, *k_bias, *v_bias, *o_bias;  // [outputs], or null
  const float *gate_bias, *up_bias, *down_bias;
  int64_t window;  // newest keys seen, 0 for all
};

struct Model {
  Heads heads;
  int64_t hidden, intermediate, layers;
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

// One phase over all tiles of a matrix, `grain` of them in a task.
template <class Task>
inline void each_tile(Team& team, const Matrix& w, int grain, Task&& task) {
  const int count = w.tiles();
  team.each((count + grain - 1) / grain, [&](int i) {
    for (int tile = i * grain; tile < std::min(count, (i + 1) * grain); tile++) task(tile);
  });
}

// out [rows, outputs] = in [rows, columns] * w^T. A phase; outputs need not fill the last tile.
inline void linear(Team& team, const Matrix& w, const Activations& in, int64_t rows, float* out) {
  each_tile(team, w, 4, [&](int tile) {
    multiply(w, tile, in, rows, [&](int64_t r, f32x16 sums) {
      const int64_t at = (int64_t)tile * TILE;
      std::memcpy(out + r * w.outputs + at, &sums, std::min<int64_t>(TILE, w.outputs - at) * sizeof(float));
    });
  });
}

inline f32x16 bias_of(const float* bias, int tile) { return bias ? load<f32x16>(bias + tile * TILE) : f32x16{}; }

class Decoder {
 public:
  Decoder(const Model& model, Team& team) : model_(model), team_(team), attention_(model.heads) {}

  // hidden: [rows, hidden], the result after the final norm.
  void forward(const Step& step, const Cache& cache, float* hidden) {
    const int64_t rows = step.rows;
    normed_ = normed_memory_.at_least(rows, model_.hidden);
    inner_ = inner_memory_.at_least(rows, model_.intermediate);
    mixed_ = mixed_memory_.at_least(rows, model_.heads.width());
    qkv_.at_least(rows * model_.heads.qkv());
    outputs_.at_least(rows * model_.heads.width());
    attention_.plan(rows, step.chunks, step.chunk);
    team_.run([&](int) {
      team_.each((int)rows, [&](int r) { embed(model_.embedding, step.tokens[r], hidden + r * model_.hidden); });
      for (int64_t l = 0; l < model_.layers; l++) {
        attend(model_.layer[l], l, rows, cache, hidden);
        feed_forward(model_.layer[l], rows, hidden);
      }
      team_.each((int)rows, [&](int r) { norm(hidden + r * model_.hidden, model_.final_norm, model_.hidden, model_.eps); });
    });
  }

  // out: [rows, vocabulary].
  void logits(const float* hidden, int64_t rows, float* out) {
    Activations in = normed_memory_.at_least(rows, model_.hidden);
    team_.run([&](int) {
      team_.each((int)rows, [&](int r) { quantize_row(hidden + r * model_.hidden, in, r); });
      linear(team_, model_.head, in, rows, out);
    });
  }

 private:
  void attend(const Layer& layer, int64_t index, int64_t rows, const Cache& cache, float* hidden) {
    const Turn turn{layer.q_norm, layer.k_norm, model_.eps, model_.cos, model_.sin};
    const int64_t width = model_.heads.width(), stride = model_.heads.qkv();
    float* outputs = outputs_.get();
    team_.each((int)rows, [&](int r) {
      norm_quantize(hidden + r * model_.hidden, layer.input_norm, model_.eps, normed_, r);
    });
    project(layer, rows, stride);
    team_.each((int)rows, [&](int r) { attention_.place(r, qkv_.get() + r * stride, turn, cache, index); });
    team_.each(attention_.tasks(), [&](int i) { attention_.task(i, cache, index, layer.window, outputs); });
    team_.each((int)rows, [&](int r) {
      attention_.finish(r, layer.window, outputs);
      quantize_row(outputs + r * width, mixed_, r);
    });
    add_linear(hidden, layer.o, layer.o_bias, mixed_, rows, 2);
  }

  // Queries, keys and values: one phase over the tiles of three matrices.
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

  void feed_forward(const Layer& layer, int64_t rows, float* hidden) {
    team_.each((int)rows, [&](int r) {
      norm_quantize(hidden + r * model_.hidden, layer.post_norm, model_.eps, normed_, r);
    });
    team_.each((int)(model_.intermediate / GROUP), [&](int unit) { gated(layer, unit, rows); });
    add_linear(hidden, layer.down, layer.down_bias, inner_, rows, 1);
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

  void add_linear(float* hidden, const Matrix& w, const float* bias, const Activations& in, int64_t rows, int grain) {
    each_tile(team_, w, grain, [&](int tile) {
      const f32x16 more = bias_of(bias, tile);
      multiply(w, tile, in, rows, [&](int64_t r, f32x16 sums) {
        float* to = hidden + r * model_.hidden + tile * TILE;
        store(to, load<f32x16>(to) + (sums + more));
      });
    });
  }

  const Model model_;
  Team& team_;
  AttentionStep attention_;
  ActivationMemory normed_memory_, inner_memory_, mixed_memory_;
  Activations normed_{}, inner_{}, mixed_{};
  Buffer<float> qkv_, outputs_;
};

}  // namespace headrace
