// Kernels of feature maps: see kernels.h. A channel's sums are added image by image, so that they
// do not depend on which other channels a call works on.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

using thanos::Maps;

// Calls `body(channel, at)` with the index of the first pixel of each map.
template <typename F>
INLINE void for_maps(const Maps& maps, const F& body) {
  for (int64_t image = 0; image < maps.images; image++) {
    for (int64_t channel = maps.from; channel < maps.to; channel++) {
      body(channel, (image * maps.channels + channel) * maps.pixels);
    }
  }
}

INLINE void clear(const Maps& maps, double* sums) {
  for (int64_t channel = maps.from; channel < maps.to; channel++)
    sums[channel] = sums[maps.channels + channel] = 0;
}

template <typename T>
static void moments(const Maps& maps, const T* x, double* sums) {
  clear(maps, sums);
  for_maps(maps, [&](int64_t channel, int64_t at) {
    double first = 0, second = 0;
    int64_t i = 0;
    if (maps.pixels >= W<double>) {
      V<double> firsts{}, seconds{};
      for (; i + W<double> <= maps.pixels; i += W<double>) {
        const V<double> value = load_wide<T>(x + at + i);
        firsts += value;
        seconds += value * value;
      }
      first = sum<double>(firsts), second = sum<double>(seconds);
    }
    for (; i < maps.pixels; i++) {
      const double value = x[at + i];
      first += value;
      second += value * value;
    }
    sums[channel] += first;
    sums[maps.channels + channel] += second;
  });
}

template <typename T>
static void moments_backward(const Maps& maps, const T* x, const T* grad, const T* centre,
                             const T* slope, const T* offset, T* dx) {
  for_maps(maps, [&](int64_t channel, int64_t at) {
    const V<T> middle = all<T>(centre[channel]), factor = all<T>(slope[channel]),
               added = all<T>(offset[channel]);
    for (int64_t i = 0; i < maps.pixels; i += W<T>) {
      const int64_t left = maps.pixels - i;
      const V<T> away = load<T>(x + at + i, left) - middle;
      store<T>(dx + at + i, load<T>(grad + at + i, left) + (away * factor + added), left);
    }
  });
}

template <typename T>
static void standardise(const Maps& maps, const T* x, const T* centre, const T* scale,
                        const T* shift, const T* residual, bool relu, T* out) {
  const V<T> zero{};
  for_maps(maps, [&](int64_t channel, int64_t at) {
    const V<T> middle = all<T>(centre[channel]), factor = all<T>(scale[channel]),
               added = all<T>(shift[channel]);
    for (int64_t i = 0; i < maps.pixels; i += W<T>) {
      const int64_t left = maps.pixels - i;
      V<T> value = (load<T>(x + at + i, left) - middle) * factor + added;
      if (residual) value += load<T>(residual + at + i, left);
      // NaN is not below zero.
      if (relu) value = value < zero ? zero : value;
      store<T>(out + at + i, value, left);
    }
  });
}

template <typename T>
static void standardise_backward(const Maps& maps, const T* x, const T* out, const T* grad,
                                 const T* centre, const T* scale, T* dx, T* masked, double* sums) {
  const V<T> zero{};
  clear(maps, sums);
  for_maps(maps, [&](int64_t channel, int64_t at) {
    const V<T> middle = all<T>(centre[channel]), factor = all<T>(scale[channel]);
    V<T> first{}, second{};
    for (int64_t i = 0; i < maps.pixels; i += W<T>) {
      const int64_t left = maps.pixels - i;
      // Lanes after the last pixel have a gradient of zero.
      V<T> inner = load<T>(grad + at + i, left);
      if (out) inner = load<T>(out + at + i, left) <= zero ? zero : inner;
      if (masked) store<T>(masked + at + i, inner, left);
      first += inner;
      second += inner * (load<T>(x + at + i, left) - middle);
      store<T>(dx + at + i, inner * factor, left);
    }
    sums[channel] += sum<T>(first);
    sums[maps.channels + channel] += sum<T>(second);
  });
}

}  // namespace
