// The random numbers of ../random.h, each counter by itself: the same bits.
#pragma once

#include "arguments.h"
#include "device.h"

namespace {

// Elements of one counter: element e of a group of 128 is number e / 16 of lane e % 16.
constexpr int kNumbers = 8;
constexpr int kCountersOfGroup = static_cast<int>(thanos::gpu::kCounters);

struct Numbers {
  uint32_t word[4];
  DEVICE uint32_t at(int number) const { return word[number / 2] >> (number % 2 * 16) & 0xffff; }
};

// Of counter `lane` of `group`, of the site `site` of an image. Philox4x32-10 (Salmon et al., SC
// 2011).
DEVICE Numbers draw(uint64_t key, uint64_t row, uint32_t site, uint32_t counter) {
  constexpr uint32_t kMultiply0 = 0xD2511F53, kMultiply1 = 0xCD9E8D57, kWeyl0 = 0x9E3779B9,
                     kWeyl1 = 0xBB67AE85;
  uint32_t a = counter, b = site, c = static_cast<uint32_t>(row),
           d = static_cast<uint32_t>(row >> 32);
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

// The factor of one element of a site of an image: 0 or the inverse of the probability.
DEVICE float element_factor(const thanos::gpu::Randomness& random, int64_t image,
                            thanos::gpu::Site site, int element) {
  if (site.kept == thanos::kEverything) return 1;
  const int group = element / static_cast<int>(thanos::kGroup),
            within = element % static_cast<int>(thanos::kGroup);
  const uint32_t counter = group * kCountersOfGroup + within % kCountersOfGroup;
  const Numbers numbers =
      draw(*random.key, static_cast<uint64_t>(random.rows[image]), site.site, counter);
  return numbers.at(within / kCountersOfGroup) < site.kept ? site.scale : 0;
}

// Which of eight neighbours are kept, elements 8 x place to 8 x place + 7 of a group of a site, as
// bits. The 16 threads of half a warp call it for one group, each with its number as the place:
// each draws one counter, and reads eight.
DEVICE uint32_t kept_of_eight(const thanos::gpu::Randomness& random, int64_t image,
                              thanos::gpu::Site site, int64_t group, int place) {
  if (site.kept == thanos::kEverything) return 0xff;
  const uint32_t first = static_cast<uint32_t>(group) * kCountersOfGroup;
  const uint64_t row = static_cast<uint64_t>(random.rows[image]);
#ifdef __CUDACC__
  const Numbers numbers = draw(*random.key, row, site.site, first + lane() % kCountersOfGroup);
  uint32_t found = 0;
  UNROLL for (int number = 0; number < kNumbers; number++) {
    const uint32_t kept = __ballot_sync(0xffffffff, numbers.at(number) < site.kept);
    if (place / 2 == number) found = kept;
  }
  return found >> (lane() & 16) >> (place % 2 * 8) & 0xff;
#else
  uint32_t found = 0;
  for (int i = 0; i < 8; i++) {
    const int element = 8 * place + i;
    const Numbers numbers = draw(*random.key, row, site.site, first + element % kCountersOfGroup);
    found |= static_cast<uint32_t>(numbers.at(element / kCountersOfGroup) < site.kept) << i;
  }
  return found;
#endif
}

// Which elements of some groups are kept, 16 in a word in their order, by all threads of a block.
// Groups from `first` on.
DEVICE void draw_words(const thanos::gpu::Randomness& random, int64_t image, thanos::gpu::Site site,
                       uint32_t first, int groups, uint16_t* words) {
  const uint64_t row = static_cast<uint64_t>(random.rows[image]);
#ifdef __CUDACC__
  for (int from = warp() * 2; from < groups; from += warps() * 2) {
    const int group = from + lane() / kCountersOfGroup, number_here = lane() % kCountersOfGroup;
    const Numbers numbers =
        draw(*random.key, row, site.site, (first + group) * kCountersOfGroup + number_here);
    UNROLL for (int number = 0; number < kNumbers; number++) {
      const uint32_t kept = __ballot_sync(0xffffffff, numbers.at(number) < site.kept);
      if (number_here == number && group < groups)
        words[group * kNumbers + number] = kept >> (lane() & 16) & 0xffff;
    }
  }
#else
  for (int group = 0; group < groups; group++) {
    for (int number = 0; number < kNumbers; number++) words[group * kNumbers + number] = 0;
    for (int i = 0; i < kCountersOfGroup; i++) {
      const Numbers numbers =
          draw(*random.key, row, site.site, (first + group) * kCountersOfGroup + i);
      for (int number = 0; number < kNumbers; number++) {
        words[group * kNumbers + number] |=
            static_cast<uint16_t>((numbers.at(number) < site.kept) << i);
      }
    }
  }
#endif
}

// Whether an element is kept, of words as above.
DEVICE bool is_kept(const uint16_t* words, uint32_t element) {
  return words[element / 16] >> (element % 16) & 1;
}

}  // namespace
