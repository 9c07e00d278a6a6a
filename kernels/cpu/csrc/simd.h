// Sixteen fp32 lanes on any x86-64 since 2013, and the two dot products everything here is made of.
//
// One source is compiled once for each instruction set (kernels/cpu/build.py); what differs between them is in this file and
// `wide.h` only. Contraction of a * b + c is written out, never left to the compiler, so that a row's result does not depend on which
// instance of a template computed it.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "wide.h"

namespace headrace {

#if defined(__AVX512F__)
typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
#else
typedef Wide<float> f32x16;
typedef Wide<int32_t> i32x16;
typedef Wide<uint32_t> u32x16;
#endif
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));

template <class V>
struct Memory {
  static V load(const void* from) {
    V out;
    std::memcpy(&out, from, sizeof out);
    return out;
  }
  static void store(void* to, V value) { std::memcpy(to, &value, sizeof value); }
};
// Half by half: as one object it would be copied by way of the stack, in pieces that the loads after it have to wait for.
template <class T>
struct Memory<Wide<T>> {
  static Wide<T> load(const void* from) {
    const __m256i* halves = (const __m256i*)from;
    return {(typename Wide<T>::Half)_mm256_loadu_si256(halves), (typename Wide<T>::Half)_mm256_loadu_si256(halves + 1)};
  }
  static void store(void* to, const Wide<T>& value) {
    __m256i* halves = (__m256i*)to;
    _mm256_storeu_si256(halves, (__m256i)value.lo);
    _mm256_storeu_si256(halves + 1, (__m256i)value.hi);
  }
};

template <class V>
inline V load(const void* from) {
  return Memory<V>::load(from);
}
template <class V>
inline void store(void* to, V value) {
  Memory<V>::store(to, value);
}

// Ask for `bytes` from `at` on, into the second level of cache: it takes more requests at once than the first.
inline void prefetch(const void* at, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch((const char*)at + i, _MM_HINT_T1);
}

// --- what an instruction set gives -------------------------------------------------------------------------------------
#if defined(__AVX512F__)

inline f32x16 splat(float x) { return x - f32x16{}; }
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return (f32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline f32x16 max(f32x16 a, f32x16 b) { return (f32x16)_mm512_max_ps((__m512)a, (__m512)b); }
inline i32x16 to_int(f32x16 a) { return (i32x16)_mm512_cvtps_epi32((__m512)a); }
inline f32x16 half(const void* from) { return (f32x16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)); }
inline i8x16 narrow(i32x16 a) { return (i8x16)_mm512_cvtepi32_epi8((__m512i)a); }
inline float sum(f32x16 a) { return _mm512_reduce_add_ps((__m512)a); }
inline int32_t sum(i32x16 a) { return _mm512_reduce_add_epi32((__m512i)a); }
inline float largest(f32x16 a) { return _mm512_reduce_max_ps((__m512)a); }
inline int32_t largest(i32x16 a) { return _mm512_reduce_max_epi32((__m512i)a); }
inline f32x16 to_float(i32x16 x) { return (f32x16)_mm512_cvtepi32_ps((__m512i)x); }
inline i32x16 widen(u8x16 x) { return (i32x16)_mm512_cvtepu8_epi32((__m128i)x); }
inline i32x16 widen(i8x16 x) { return (i32x16)_mm512_cvtepi8_epi32((__m128i)x); }

#else

inline f32x16 both(__m256 a, __m256 b) { return {(f32x16::Half)a, (f32x16::Half)b}; }
inline i32x16 both(__m256i a, __m256i b) { return {(i32x16::Half)a, (i32x16::Half)b}; }

inline f32x16 splat(float x) { return both(_mm256_set1_ps(x), _mm256_set1_ps(x)); }

inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return both(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}
inline f32x16 max(f32x16 a, f32x16 b) { return both(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)); }
inline i32x16 to_int(f32x16 a) { return both(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)); }
inline f32x16 to_float(i32x16 x) { return both(_mm256_cvtepi32_ps((__m256i)x.lo), _mm256_cvtepi32_ps((__m256i)x.hi)); }
inline f32x16 half(const void* from) {
  const __m128i* pairs = (const __m128i*)from;
  return both(_mm256_cvtph_ps(_mm_loadu_si128(pairs)), _mm256_cvtph_ps(_mm_loadu_si128(pairs + 1)));
}
inline i8x16 narrow(i32x16 a) {  // of numbers that fit
  const __m256i some = _mm256_packs_epi32((__m256i)a.lo, (__m256i)a.hi);  // 0-3, 8-11 | 4-7, 12-15
  const __m256i words = _mm256_permute4x64_epi64(some, 0b11011000);
  return (i8x16)_mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
inline i32x16 widen(u8x16 x) { return both(_mm256_cvtepu8_epi32((__m128i)x), _mm256_cvtepu8_epi32(_mm_srli_si128((__m128i)x, 8))); }
inline i32x16 widen(i8x16 x) { return both(_mm256_cvtepi8_epi32((__m128i)x), _mm256_cvtepi8_epi32(_mm_srli_si128((__m128i)x, 8))); }

// Folded in halves; the order in which lanes are added is part of a row's bits.
inline float sum(f32x16 a) {
  const __m256 eight = a.lo + a.hi;
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline int32_t sum(i32x16 a) {
  const __m256i eight = (__m256i)(a.lo + a.hi);
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0b01001110));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0b10110001)));
}
inline int32_t largest(i32x16 a) {
  const __m256i eight = _mm256_max_epi32((__m256i)a.lo, (__m256i)a.hi);
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0b01001110));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0b10110001)));
}
inline float largest(f32x16 a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#endif

inline i32x16 select(i32x16 mask, i32x16 yes, i32x16 no) { return (mask & yes) | (~mask & no); }
inline f32x16 select(i32x16 mask, f32x16 yes, f32x16 no) { return (f32x16)select(mask, (i32x16)yes, (i32x16)no); }
inline i32x16 lanes() {
  alignas(64) static constexpr int32_t NUMBERS[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load<i32x16>(NUMBERS);
}

// --- int8: sums over N quads j of w[4i] x[0] + w[4i+1] x[1] + w[4i+2] x[2] + w[4i+3] x[3] ------------------------------
// w unsigned (weights of BITS bits), x four signed bytes in one dword (activations in -127..127). Of 8-bit weights some sets take
// CENTRE off, which is then not to be taken off again.

#if defined(__AVX512VNNI__)

template <int BITS, int N>
struct Dots {
  static constexpr int CENTRE = 0;
  i32x16 sum;

  static Dots from(int32_t start) { return {i32x16{} + start}; }
  void add(int, u32x16 w, int32_t x) { sum = (i32x16)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(x)); }
  i32x16 total() const { return sum; }
};

#else

#if defined(__AVX512BW__)

typedef __m512i Bytes;
inline Bytes part(u32x16 w, int) { return (Bytes)w; }
inline i32x16 whole(const Bytes* parts) { return (i32x16)parts[0]; }
inline Bytes splat_bytes(int32_t x) { return _mm512_set1_epi32(x); }
inline Bytes add16(Bytes a, Bytes b) { return _mm512_add_epi16(a, b); }
inline Bytes add32(Bytes a, Bytes b) { return _mm512_add_epi32(a, b); }
inline Bytes pairs16(Bytes w, Bytes x) { return _mm512_maddubs_epi16(w, x); }
inline Bytes pairs32(Bytes a) { return _mm512_madd_epi16(a, _mm512_set1_epi16(1)); }
inline Bytes centred(Bytes w) { return _mm512_xor_si512(w, _mm512_set1_epi8((char)0x80)); }
inline Bytes magnitudes(Bytes w) { return _mm512_abs_epi8(w); }
inline void in_turn(Bytes&) {}
inline Bytes signed_by(Bytes x, Bytes w) {
  return _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
}

#else

typedef __m256i Bytes;
inline Bytes part(const u32x16& w, int i) { return (Bytes)(i ? w.hi : w.lo); }
inline i32x16 whole(const Bytes* parts) { return both(parts[0], parts[1]); }
inline Bytes splat_bytes(int32_t x) { return _mm256_set1_epi32(x); }
inline Bytes add16(Bytes a, Bytes b) { return _mm256_add_epi16(a, b); }
inline Bytes add32(Bytes a, Bytes b) { return _mm256_add_epi32(a, b); }
inline Bytes pairs16(Bytes w, Bytes x) { return _mm256_maddubs_epi16(w, x); }
inline Bytes pairs32(Bytes a) { return _mm256_madd_epi16(a, _mm256_set1_epi16(1)); }
inline Bytes centred(Bytes w) { return _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80)); }
inline Bytes magnitudes(Bytes w) { return _mm256_abs_epi8(w); }
// What is added next is not added first to what comes after it: as a tree, of which GCC keeps all leaves in memory, sums took 1.6 times as long.
inline void in_turn(Bytes& sum) { __asm__("" : "+x"(sum)); }
inline Bytes signed_by(Bytes x, Bytes w) { return _mm256_sign_epi8(x, w); }

#endif

// maddubs gives sums of two products in 16 bits, which saturate. RUN of them are added before they are widened: as many as cannot
// reach 2^15. 8-bit weights go as magnitudes, with their signs on the activations: 128 * 127 * 2 is within.
template <int BITS, int N>
struct Dots {
  static constexpr int CENTRE = BITS == 8 ? 128 : 0;
  static constexpr int MOST = (BITS == 8 ? 128 : (1 << BITS) - 1) * 127 * 2, FIT = 32767 / MOST, RUN = FIT < N ? FIT : N;
  static constexpr int PARTS = 64 / sizeof(Bytes);
  int32_t start;
  Bytes sum[PARTS], run[PARTS];

  static Dots from(int32_t start) {
    Dots out;
    out.start = start;
    return out;
  }
  void add(int j, u32x16 w, int32_t x) {
#pragma GCC unroll 2
    for (int i = 0; i < PARTS; i++) {
      const Bytes some = products(part(w, i), splat_bytes(x));
      run[i] = j % RUN ? add16(run[i], some) : some;
      in_turn(run[i]);
      if (j % RUN == RUN - 1 || j == N - 1) sum[i] = add32(j < RUN ? splat_bytes(start) : sum[i], pairs32(run[i]));
    }
  }
  i32x16 total() const { return whole(sum); }

 private:
  static Bytes products(Bytes w, Bytes x) {
    if constexpr (BITS < 8) return pairs16(w, x);
    const Bytes c = centred(w);
    return pairs16(magnitudes(c), signed_by(x, c));
  }
};

#endif

// Bytes of `table` at the places in w, 0 to 15 in every byte.
inline u32x16 look_up(const uint8_t* table, u32x16 w) {
  const __m128i values = _mm_load_si128((const __m128i*)table);
#if defined(__AVX512BW__)
  return (u32x16)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), (__m512i)w);
#else
  const __m256i all = _mm256_broadcastsi128_si256(values);
  return (u32x16)both(_mm256_shuffle_epi8(all, (__m256i)w.lo), _mm256_shuffle_epi8(all, (__m256i)w.hi));
#endif
}

// --- bf16: acc[i] += kv[2i] p[0] + kv[2i+1] p[1], products exact, sums in fp32 -----------------------------------------
// kv comes from the cache (two bf16 in a dword), p is a pair of a query or of weights of attention.

inline uint16_t to_bf16(float x) {  // round to nearest even; NaN stays NaN
  uint32_t bits = load<uint32_t>(&x);
  if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#if defined(__AVX512BF16__)

typedef uint32_t Pair;

inline Pair pair(float even, float odd) { return (uint32_t)to_bf16(odd) << 16 | to_bf16(even); }
inline f32x16 dot2(f32x16 acc, u32x16 kv, Pair p) {
  return (f32x16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)kv, (__m512bh)_mm512_set1_epi32((int)p));
}
// 32 weights of attention as 16 pairs.
inline void pairs_of(Pair* to, f32x16 first, f32x16 second) {
  __m512bh packed = _mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  std::memcpy(to, &packed, 64);
}

#else

struct Pair {
  float even, odd;
};

inline Pair pair(float even, float odd) { return {even, odd}; }
inline f32x16 dot2(f32x16 acc, u32x16 kv, Pair p) {
  f32x16 even = (f32x16)(kv << 16), odd = (f32x16)(kv & 0xffff0000u);
  return fma(odd, splat(p.odd), fma(even, splat(p.even), acc));
}
inline void pairs_of(Pair* to, f32x16 first, f32x16 second) {
  std::memcpy(to, &first, 64);
  std::memcpy((char*)to + 64, &second, 64);
}

#endif

// --- exponentials ------------------------------------------------------------------------------------------------------
// 2^x for x <= 127: n + f with f in [-1/2, 1/2], a polynomial for 2^f (relative error 2e-7), n added to the exponent.
// Below -126 the result is 2^-126 and not 0: nothing here adds enough of them to see it.
inline f32x16 exp2(f32x16 x) {
  x = max(x, splat(-126.0f));
  i32x16 n = to_int(x);
  f32x16 f = x - to_float(n);
  f32x16 p = splat(1.5353362e-4f);
  p = fma(p, f, splat(1.3398874e-3f));
  p = fma(p, f, splat(9.6184373e-3f));
  p = fma(p, f, splat(5.5503324e-2f));
  p = fma(p, f, splat(2.4022651e-1f));
  p = fma(p, f, splat(6.9314720e-1f));
  p = fma(p, f, splat(1.0f));
  return (f32x16)((i32x16)p + (n << 23));
}

// The same to the digits that bf16 keeps (relative error 1e-4), for x <= 0: weights of attention, which are rounded to it.
inline f32x16 coarse_exp2(f32x16 x) {
#if defined(__AVX512F__)
  const f32x16 n = (f32x16)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT), f = x - n;
#else
  x = max(x, splat(-126.0f));
  const i32x16 n = to_int(x);
  const f32x16 f = x - to_float(n);
#endif
  f32x16 p = splat(5.5008961e-2f);
  p = fma(p, f, splat(2.4221024e-1f));
  p = fma(p, f, splat(6.9328293e-1f));
  p = fma(p, f, splat(1.0f));
#if defined(__AVX512F__)
  return (f32x16)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return (f32x16)((i32x16)p + (n << 23));
#endif
}

constexpr float LOG2E = 1.44269504088896341f;

// x / (1 + e^-z); e^-z is kept below 2^127, where the quotient is 0 to any digit that matters.
inline f32x16 times_logistic(f32x16 x, f32x16 z) {
  f32x16 power = z * splat(-LOG2E);
  power = select(power < splat(127.0f), power, splat(127.0f));
  return x / (splat(1.0f) + exp2(power));
}

// tanh(x) = 1 - 2 / (1 + e^2x), to 1e-7 of 1; e^2x is kept below 2^127, where that is 1 to any digit. NaN stays one.
inline f32x16 hyperbolic_tangent(f32x16 x) {
  f32x16 power = x * splat(2.0f * LOG2E);
  power = select(power < splat(126.0f), power, splat(126.0f));
  return splat(1.0f) - splat(2.0f) / (splat(1.0f) + exp2(power)) + (x - x);
}

// The numbers are those of `ACTIVATIONS` in kernels/cpu/variants.py.
enum Activation : int64_t { SILU = 0, GELU_TANH = 1 };

template <Activation ACTIVATION>
inline f32x16 activate(f32x16 x) {
  if constexpr (ACTIVATION == SILU) return times_logistic(x, x);
  // x / 2 * (1 + tanh(y)) = x / (1 + e^-2y) with y = sqrt(2 / pi) * (x + 0.044715 x^3).
  const f32x16 cubic = fma(x * x * x, splat(0.044715f), x);
  return times_logistic(x, cubic * splat(1.59576912160573f));
}

}  // namespace headrace
