// Sixteen lanes where vectors have 32 bytes: two of them, with the operators that compilers give to a vector of 64 bytes. (Those
// they would give here too, but they then keep it in memory: products were thirty times slower.)
#pragma once

#include <cstdint>
#include <type_traits>

namespace headrace {

template <class T>
struct Wide {
  typedef T Half __attribute__((vector_size(32)));
  Half lo, hi;

  // The same bits as other lanes.
  template <class U>
  explicit operator Wide<U>() const {
    return {(typename Wide<U>::Half)lo, (typename Wide<U>::Half)hi};
  }
  T operator[](int lane) const { return lane < 8 ? lo[lane] : hi[lane - 8]; }
  Wide operator-() const { return {-lo, -hi}; }
  Wide operator~() const { return {~lo, ~hi}; }
};

// With another vector, or with one number in all lanes.
#define HEADRACE_OPERATOR(op)                                                                 \
  template <class T>                                                                          \
  inline Wide<T> operator op(const Wide<T>& a, const Wide<T>& b) {                            \
    return {a.lo op b.lo, a.hi op b.hi};                                                      \
  }                                                                                           \
  template <class T>                                                                          \
  inline Wide<T> operator op(const Wide<T>& a, std::type_identity_t<T> b) {                   \
    return {a.lo op b, a.hi op b};                                                            \
  }                                                                                           \
  template <class T>                                                                          \
  inline Wide<T>& operator op##=(Wide<T>& a, const Wide<T>& b) {                              \
    return a = a op b;                                                                        \
  }
HEADRACE_OPERATOR(+)
HEADRACE_OPERATOR(-)
HEADRACE_OPERATOR(*)
HEADRACE_OPERATOR(/)
HEADRACE_OPERATOR(&)
HEADRACE_OPERATOR(|)
HEADRACE_OPERATOR(<<)
HEADRACE_OPERATOR(>>)
#undef HEADRACE_OPERATOR

// All bits of a lane where it is so.
#define HEADRACE_COMPARISON(op)                                                               \
  template <class T>                                                                          \
  inline Wide<int32_t> operator op(const Wide<T>& a, const Wide<T>& b) {                      \
    return {a.lo op b.lo, a.hi op b.hi};                                                      \
  }                                                                                           \
  template <class T>                                                                          \
  inline Wide<int32_t> operator op(const Wide<T>& a, std::type_identity_t<T> b) {             \
    return {a.lo op b, a.hi op b};                                                            \
  }
HEADRACE_COMPARISON(==)
HEADRACE_COMPARISON(<)
HEADRACE_COMPARISON(>)
HEADRACE_COMPARISON(>=)
#undef HEADRACE_COMPARISON

}  // namespace headrace
