// AVX-512 in plain C++, for tests on processors without it: included before the kernels' sources, it gives each intrinsic that they use
// the meaning that Intel's guide states, and has them compiled as for that processor. Slow, and right bit by bit but for the last of
// BF16 products, whose order of additions processors do not state alike.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace emulated {

template <class T, class V, class F>
inline V made(F&& lane) {
  T out[sizeof(V) / sizeof(T)];
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); i++) out[i] = lane(i);
  V whole;
  std::memcpy(&whole, out, sizeof whole);
  return whole;
}
template <class T, class V>
inline T at(const V& from, unsigned i) {
  T out;
  std::memcpy(&out, (const char*)&from + i * sizeof(T), sizeof out);
  return out;
}
inline int16_t saturated(int x) { return (int16_t)(x > 32767 ? 32767 : x < -32768 ? -32768 : x); }
template <class F>
inline __m512 floats(F&& lane) {
  return made<float, __m512>(lane);
}
template <class T, class F>
inline __m512i ints(F&& lane) {
  return made<T, __m512i>(lane);
}

inline __m512 fmadd(__m512 a, __m512 b, __m512 c) {
  return floats([&](unsigned i) { return std::fma(at<float>(a, i), at<float>(b, i), at<float>(c, i)); });
}
inline __m512 max(__m512 a, __m512 b) {
  return floats([&](unsigned i) { return at<float>(a, i) > at<float>(b, i) ? at<float>(a, i) : at<float>(b, i); });
}
inline __m512i cvtps(__m512 a) {
  return ints<int32_t>([&](unsigned i) { return (int32_t)std::nearbyint(at<float>(a, i)); });
}
inline __m512 cvtepi32(__m512i a) {
  return floats([&](unsigned i) { return (float)at<int32_t>(a, i); });
}
inline __m512 cvtph(__m256i a) {
  return floats([&](unsigned i) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(at<uint16_t>(a, i)))); });
}
inline __m128i cvtepi32_epi8(__m512i a) {
  return made<int8_t, __m128i>([&](unsigned i) { return (int8_t)at<int32_t>(a, i); });
}
inline __m512i cvtepi8(__m128i a) {
  return ints<int32_t>([&](unsigned i) { return at<int8_t>(a, i); });
}
inline __m512i cvtepu8(__m128i a) {
  return ints<int32_t>([&](unsigned i) { return at<uint8_t>(a, i); });
}
// Of lanes 8 apart, then 4, 2, 1, as compilers reduce.
template <class T, class V, class F>
inline T reduced(const V& a, F&& join) {
  T lanes[16];
  std::memcpy(lanes, &a, sizeof lanes);
  for (int apart = 8; apart; apart /= 2)
    for (int i = 0; i < apart; i++) lanes[i] = join(lanes[i], lanes[i + apart]);
  return lanes[0];
}
inline float add_all(__m512 a) {
  return reduced<float>(a, [](float x, float y) { return x + y; });
}
inline int32_t add_all(__m512i a) {
  return reduced<int32_t>(a, [](int32_t x, int32_t y) { return x + y; });
}
inline float most(__m512 a) {
  return reduced<float>(a, [](float x, float y) { return x > y ? x : y; });
}
inline int32_t most(__m512i a) {
  return reduced<int32_t>(a, [](int32_t x, int32_t y) { return x > y ? x : y; });
}
inline __m512 rounded(__m512 a) {
  return floats([&](unsigned i) { return std::nearbyint(at<float>(a, i)); });
}
inline __m512 scaled(__m512 a, __m512 by) {
  return floats([&](unsigned i) { return std::scalbn(at<float>(a, i), (int)std::floor(std::fmax(at<float>(by, i), -10000.0f))); });
}
inline __m512i add16(__m512i a, __m512i b) {
  return ints<int16_t>([&](unsigned i) { return (int16_t)(at<int16_t>(a, i) + at<int16_t>(b, i)); });
}
inline __m512i add32(__m512i a, __m512i b) {
  return ints<int32_t>([&](unsigned i) { return at<int32_t>(a, i) + at<int32_t>(b, i); });
}
inline __m512i maddubs(__m512i w, __m512i x) {
  return ints<int16_t>([&](unsigned i) {
    return saturated(at<uint8_t>(w, 2 * i) * at<int8_t>(x, 2 * i) + at<uint8_t>(w, 2 * i + 1) * at<int8_t>(x, 2 * i + 1));
  });
}
inline __m512i madd(__m512i a, __m512i b) {
  return ints<int32_t>([&](unsigned i) {
    return at<int16_t>(a, 2 * i) * at<int16_t>(b, 2 * i) + at<int16_t>(a, 2 * i + 1) * at<int16_t>(b, 2 * i + 1);
  });
}
inline __m512i dpbusd(__m512i sum, __m512i w, __m512i x) {
  return ints<int32_t>([&](unsigned i) {
    int32_t out = at<int32_t>(sum, i);
    for (unsigned k = 4 * i; k < 4 * i + 4; k++) out += at<uint8_t>(w, k) * at<int8_t>(x, k);
    return out;
  });
}
inline __m512i sub8(__m512i a, __m512i b) {
  return ints<uint8_t>([&](unsigned i) { return (uint8_t)(at<uint8_t>(a, i) - at<uint8_t>(b, i)); });
}
inline __m512i abs8(__m512i a) {
  return ints<uint8_t>([&](unsigned i) { return (uint8_t)(at<int8_t>(a, i) < 0 ? -at<int8_t>(a, i) : at<int8_t>(a, i)); });
}
inline uint64_t signs8(__m512i a) {
  uint64_t out = 0;
  for (unsigned i = 0; i < 64; i++) out |= (uint64_t)(at<int8_t>(a, i) < 0) << i;
  return out;
}
inline __m512i mask_sub8(__m512i keep, uint64_t mask, __m512i a, __m512i b) {
  return ints<int8_t>([&](unsigned i) { return (int8_t)(mask >> i & 1 ? at<int8_t>(a, i) - at<int8_t>(b, i) : at<int8_t>(keep, i)); });
}
inline __m512i shuffle8(__m512i table, __m512i places) {
  return ints<uint8_t>([&](unsigned i) {
    const uint8_t place = at<uint8_t>(places, i);
    return (uint8_t)(place & 0x80 ? 0 : at<uint8_t>(table, i / 16 * 16 + place % 16));
  });
}
inline __m512i xored(__m512i a, __m512i b) {
  return ints<uint64_t>([&](unsigned i) { return at<uint64_t>(a, i) ^ at<uint64_t>(b, i); });
}
inline __m512i repeated(__m128i a) {
  return ints<uint64_t>([&](unsigned i) { return at<uint64_t>(a, i % 2); });
}
template <class T>
inline __m512i all(T x) {
  return ints<T>([&](unsigned) { return x; });
}
inline uint16_t bf16(float x) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float wide(uint16_t x) {
  const uint32_t bits = (uint32_t)x << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
inline __m512bh to_bf16(__m512 high, __m512 low) {
  return made<uint16_t, __m512bh>([&](unsigned i) { return bf16(at<float>(i < 16 ? low : high, i % 16)); });
}
inline __m512 dpbf16(__m512 sum, __m512bh a, __m512bh b) {
  return floats([&](unsigned i) {
    float out = at<float>(sum, i);
    for (unsigned k : {2 * i + 1, 2 * i}) out = std::fma(wide(at<uint16_t>(a, k)), wide(at<uint16_t>(b, k)), out);
    return out;
  });
}

}  // namespace emulated

#define _mm512_fmadd_ps emulated::fmadd
#define _mm512_max_ps emulated::max
#define _mm512_cvtps_epi32 emulated::cvtps
#define _mm512_cvtepi32_ps emulated::cvtepi32
#define _mm512_cvtph_ps emulated::cvtph
#define _mm512_cvtepi32_epi8 emulated::cvtepi32_epi8
#define _mm512_cvtepi8_epi32 emulated::cvtepi8
#define _mm512_cvtepu8_epi32 emulated::cvtepu8
#define _mm512_reduce_add_ps emulated::add_all
#define _mm512_reduce_add_epi32 emulated::add_all
#define _mm512_reduce_max_ps emulated::most
#define _mm512_reduce_max_epi32 emulated::most
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps(a, how) emulated::rounded(a)
#define _mm512_scalef_ps emulated::scaled
#define _mm512_add_epi16 emulated::add16
#define _mm512_add_epi32 emulated::add32
#define _mm512_maddubs_epi16 emulated::maddubs
#define _mm512_madd_epi16 emulated::madd
#define _mm512_dpbusd_epi32 emulated::dpbusd
#define _mm512_abs_epi8 emulated::abs8
#define _mm512_movepi8_mask emulated::signs8
#define _mm512_mask_sub_epi8 emulated::mask_sub8
#define _mm512_shuffle_epi8 emulated::shuffle8
#define _mm512_xor_si512 emulated::xored
#define _mm512_broadcast_i32x4 emulated::repeated
#define _mm512_sub_epi8 emulated::sub8
#define _mm512_set1_epi8 emulated::all<int8_t>
#define _mm512_set1_epi16 emulated::all<int16_t>
#define _mm512_set1_epi32 emulated::all<int32_t>
#define _mm512_setzero_si512() emulated::all<int32_t>(0)
#define _mm512_cvtne2ps_pbh emulated::to_bf16
#define _mm512_dpbf16_ps emulated::dpbf16

#define __AVX512F__ 1
#define __AVX512BW__ 1
#if defined(EMULATE_VNNI)
#define __AVX512VNNI__ 1
#define __AVX512BF16__ 1
#endif
