// What is done row by row: norms, quantization, the embedding, rotary positions.
#pragma once

#include <cmath>
#include <cstdlib>
#include <memory>

#include "panel.h"

namespace headrace {

constexpr int LANES = 16;  // floats of one vector

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

struct ActivationMemory {
  Buffer<int8_t> x;
  Buffer<Scale> scales;
  Activations at_least(int64_t rows, int64_t columns) {
    return {x.at_least(rows * columns), scales.at_least(rows * columns / GROUP), columns};
  }
};

// 1 / sqrt(mean(x^2) + eps).
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

// As it is where `weight` is null.
inline void norm_quantize(const float* x, const float* weight, float eps, const Activations& to, int64_t row) {
  if (!weight) return quantize_row(x, to, row);
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

// x becomes its norm times `weight`, in place.
inline void norm(float* x, const float* weight, int64_t size, float eps) {
  f32x16 scale = splat(inverse_rms(x, size, eps));
  for (int64_t i = 0; i < size; i += LANES) store(x + i, load<f32x16>(x + i) * scale * load<f32x16>(weight + i));
}

// One token's row of an embedding.
inline void embed(const Matrix& table, int64_t token, float* out) {
  const int lane = (int)(token % TILE);
  with_format(table.kind, [&](auto format) {
    using Format = decltype(format);
    const uint8_t* record = table.tile(token / TILE).records;
    f32x16 columns[GROUP];
    for (int64_t c = 0; c < table.columns; c += Format::COLUMNS, record += record_bytes<Format>())
      for (int g = 0; g < Format::COLUMNS / GROUP; g++) {
        weights<Format>(record, g, columns);
        for (int i = 0; i < GROUP; i++) out[c + g * GROUP + i] = columns[i][lane];
      }
  });
}

// Turn the first `rotated` dimensions of one head, halves d and d + rotated / 2 being a rotary pair.
inline void turn(float* x, int64_t rotated, const float* cos, const float* sin) {
  const int64_t half = rotated / 2;
  for (int64_t d = 0; d < half; d++) {
    float a = x[d], b = x[half + d];
    x[d] = a * cos[d] - b * sin[d];
    x[half + d] = b * cos[d] + a * sin[d];
  }
}

// x = cap * tanh(x / cap).
inline f32x16 capped(f32x16 x, float cap) { return splat(cap) * hyperbolic_tangent(x / splat(cap)); }

// x = what `scale` and (unless it is 0) `cap` make of it, any number of values.
inline void scale_and_cap(float* x, int64_t size, float scale, float cap) {
  alignas(64) float rest[LANES] = {};
  for (int64_t i = 0; i < size; i += LANES) {
    const int64_t count = std::min<int64_t>(LANES, size - i);
    std::memcpy(rest, x + i, count * sizeof(float));
    const f32x16 scaled = load<f32x16>(rest) * splat(scale);
    store(rest, cap ? capped(scaled, cap) : scaled);
    std::memcpy(x + i, rest, count * sizeof(float));
  }
}

// to += scale * from.
inline void add_row(float* to, const float* from, int64_t size, float scale) {
  for (int64_t i = 0; i < size; i += LANES) store(to + i, load<f32x16>(to + i) + load<f32x16>(from + i) * splat(scale));
}

// Add -inf to the logits of one row whose tokens' bits are not set, 32 tokens a word. A NaN stays one, and +inf becomes one.
inline void mask_row(float* row, const uint32_t* allowed, int64_t tokens) {
  alignas(64) static constexpr uint32_t PLACES[] = {1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7,
                                                    1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
  const u32x16 places = load<u32x16>(PLACES);
  for (int64_t i = 0; i + LANES <= tokens; i += LANES) {
    const uint32_t bits = allowed[i / 32] >> i % 32 & 0xffff;
    if (bits == 0xffff) continue;
    const i32x16 barred = (i32x16)((places & bits) == 0u);
    store(row + i, load<f32x16>(row + i) + (f32x16)((u32x16)barred & 0xff800000u));
  }
  for (int64_t i = tokens / LANES * LANES; i < tokens; i++)
    if (!(allowed[i / 32] >> i % 32 & 1)) row[i] -= INFINITY;
}

}  // namespace headrace
