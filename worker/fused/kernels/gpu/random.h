// The random numbers of ../random.h, each counter by itself: the same bits.
#pragma once

#include "arguments.h"
#include "device.h"

namespace {

// Elements of one counter: element e of a group of 128 is number e / 16 of lane e % 16.
constexpr int kNumbers = 8;

struct Numbers {
  uint32_t word[4];
  DEVICE uint32_t at(int number) const { return word[number / 2] >> (number % 2 * 16) & 0xffff; }
};

// Of counter `lane` of `group`, of the site `site` of an image. Philox4x32-10 (Salmon et al., SC 2011).
DEVICE Numbers draw(uint64_t key, uint64_t row, uint32_t site, uint32_t counter) {
  constexpr uint32_t kMultiply0 = 0xD2511F53, kMultiply1 = 0xCD9E8D57, kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  uint32_t a = counter, b = site, c = static_cast<uint32_t>(row), d = static_cast<uint32_t>(row >> 32);
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; round++, key0 += kWeyl0, key1 += kWeyl1) {
    const uint32_t high0 = high_product(kMultiply0, a), low0 = kMultiply0 * a;
    const uint32_t high1 = high_product(kMultiply1, c), low1 = kMultiply1 * c;
    a = high1 ^ b ^ key0;
    b = low1;
    c = high0 ^ d ^ key1;
    d = low0;
  }
  return {{a, b, c, d}};
}

// The factor of a branch of an image: 0 or the inverse of the probability.
DEVICE float branch_factor(const thanos::gpu::Randomness& random, int64_t image, thanos::gpu::Site site) {
  if (site.kept == thanos::gpu::kEverything) return 1;
  const Numbers numbers = draw(*random.key, static_cast<uint64_t>(random.rows[image]), site.site, 0);
  return numbers.at(0) < site.kept ? site.scale : 0;
}

// Counter `counter` of a site of an image; all elements are kept where the site drops nothing.
struct Mask {
  Numbers numbers;
  uint32_t kept;
  float scale;

  DEVICE Mask(const thanos::gpu::Randomness& random, int64_t image, thanos::gpu::Site site, uint32_t counter)
      : numbers{}, kept(site.kept), scale(site.scale) {
    if (kept != thanos::gpu::kEverything) {
      numbers = draw(*random.key, static_cast<uint64_t>(random.rows[image]), site.site, counter);
    }
  }

  DEVICE float at(int number) const { return numbers.at(number) < kept ? scale : 0; }
};

}  // namespace
