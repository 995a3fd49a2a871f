// Vectors of the instruction set that the including file is compiled for, by the compiler's vector
// extension, and the functions of them that the kernels need. Everything is in an unnamed
// namespace: see ../build.rs.
#pragma once

#include <cstdint>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
constexpr int kRegisters = 16;
#else
constexpr int kBytes = 16;
constexpr int kRegisters = 16;
#endif

template <typename T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float V __attribute__((vector_size(kBytes)));
  typedef int32_t I __attribute__((vector_size(kBytes)));
  typedef uint16_t U __attribute__((vector_size(kBytes / 2)));
  // As many as a vector of float64 has.
  typedef float D __attribute__((vector_size(kBytes / 2)));
  static constexpr int64_t W = kBytes / 4;
};
template <>
struct Lanes<double> {
  typedef double V __attribute__((vector_size(kBytes)));
  typedef int64_t I __attribute__((vector_size(kBytes)));
  typedef uint16_t U __attribute__((vector_size(kBytes / 4)));
  typedef V D;
  static constexpr int64_t W = kBytes / 8;
};

template <typename T>
using V = typename Lanes<T>::V;
template <typename T>
using I = typename Lanes<T>::I;
template <typename T>
constexpr int64_t W = Lanes<T>::W;

#define INLINE static inline __attribute__((always_inline))

template <typename T>
INLINE int64_t padded(int64_t elements) {
  return (elements + W<T> - 1) / W<T> * W<T>;
}

template <typename T>
INLINE V<T> all(T value) {
  return V<T>{} + value;
}

template <typename T>
INLINE V<T> load(const T* from) {
  V<T> vector;
  __builtin_memcpy(&vector, from, sizeof(vector));
  return vector;
}

// A vector of float64.
template <typename T>
INLINE V<double> load_wide(const T* from) {
  typename Lanes<T>::D vector;
  __builtin_memcpy(&vector, from, sizeof(vector));
  return __builtin_convertvector(vector, V<double>);
}

template <typename T>
INLINE void store(T* to, V<T> vector) {
  __builtin_memcpy(to, &vector, sizeof(vector));
}

// The first `left` lanes, zeros after them.
template <typename T>
INLINE V<T> load(const T* from, int64_t left) {
  if (left >= W<T>) return load<T>(from);
  V<T> vector{};
  for (int64_t i = 0; i < left; i++) vector[i] = from[i];
  return vector;
}

template <typename T>
INLINE void store(T* to, V<T> vector, int64_t left) {
  if (left >= W<T>) return store<T>(to, vector);
  for (int64_t i = 0; i < left; i++) to[i] = vector[i];
}

template <typename T>
INLINE T sum(V<T> vector) {
  T total = 0;
  for (int64_t i = 0; i < W<T>; i++) total += vector[i];
  return total;
}

// The first `left` lanes, zeros after them.
template <typename T>
INLINE V<T> first_lanes(V<T> vector, int64_t left) {
  I<T> lane;
  for (int64_t i = 0; i < W<T>; i++) lane[i] = i;
  return lane < (I<T>{} + static_cast<decltype(lane[0] + 0)>(left)) ? vector : V<T>{};
}

template <typename T>
INLINE T maximum(V<T> vector) {
  T most = vector[0];
  for (int64_t i = 1; i < W<T>; i++) most = vector[i] > most ? vector[i] : most;
  return most;
}

// `scale` where the element is kept, 0 elsewhere.
template <typename T>
INLINE V<T> kept(const uint16_t* random, int32_t below, V<T> scale) {
  typename Lanes<T>::U drawn;
  __builtin_memcpy(&drawn, random, sizeof(drawn));
  const I<T> wide = __builtin_convertvector(drawn, I<T>);
  return wide < (I<T>{} + below) ? scale : V<T>{};
}

INLINE V<double> exponential(V<double> x) {
  for (int64_t i = 0; i < W<double>; i++) x[i] = __builtin_exp(x[i]);
  return x;
}

// Relative error 1e-7: x = n ln 2 + r, a polynomial of r in [-ln 2 / 2, ln 2 / 2] (Cephes, expf),
// times 2^n.
INLINE V<float> exponential(V<float> x) {
  typedef V<float> F;
  x = x < all(-87.0f) ? all(-87.0f) : x;
  x = x > all(88.0f) ? all(88.0f) : x;
  // Adding 1.5 x 2^23 rounds to an integer.
  const F rounding = all(12582912.0f);
  const F n = (x * 1.44269504088896341f + rounding) - rounding;
  const F r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  F p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const F y = p * (r * r) + r + 1.0f;
  const I<float> power = (__builtin_convertvector(n, I<float>) + 127) << 23;
  F scale;
  __builtin_memcpy(&scale, &power, sizeof(scale));
  return y * scale;
}

// The normal distribution: `below` = P(X < x), and its density.
template <typename T>
struct Normal {
  V<T> below, density;
};

INLINE Normal<double> normal(V<double> x) {
  Normal<double> found;
  for (int64_t i = 0; i < W<double>; i++) {
    found.below[i] = 0.5 * __builtin_erfc(-x[i] * 0.70710678118654752440);
    found.density[i] = 0.39894228040143267794 * __builtin_exp(-0.5 * x[i] * x[i]);
  }
  return found;
}

// Absolute error 1e-7: Abramowitz and Stegun, 7.1.26, as libtorch's own vectorised erf.
INLINE Normal<float> normal(V<float> x) {
  typedef V<float> F;
  const F distance = x < all(0.0f) ? -x : x;
  const F bell = exponential(-0.5f * x * x);
  const F t = 1.0f / (1.0f + distance * (0.3275911f * 0.70710678118654752440f));
  F p = all(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const F tail = 0.5f * (p * t) * bell;
  return {x < all(0.0f) ? tail : 1.0f - tail, bell * 0.39894228040143267794f};
}

}  // namespace
