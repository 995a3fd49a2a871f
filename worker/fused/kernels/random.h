// Philox4x32-10 (Salmon et al., SC 2011) of 16 counters at a time: 64 numbers of 32 bits, kGroup
// numbers of 16 bits. Counter (16 group + lane, site, row's low word, row's high word); of element
// e of a group the 16 bits are those from bit 16 x (e / 16 % 2) on of word e / 32 of lane e % 16.
#pragma once

#include "kernels.h"
#include "vectors.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr uint64_t kMultiply0 = 0xD2511F53, kMultiply1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
constexpr int kRounds = 10, kCounters = 16;

#ifdef __AVX512F__

// Eight counters; their words are the low halves of the lanes, the high halves are whatever is left
// there.
struct Eight {
  __m512i word[4];
};

INLINE void rounds(Eight& state, uint64_t key) {
  const __m512i multiply0 = _mm512_set1_epi64(kMultiply0),
                multiply1 = _mm512_set1_epi64(kMultiply1);
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  constexpr int kXor3 = 0x96;
  for (int round = 0; round < kRounds; round++, key0 += kWeyl0, key1 += kWeyl1) {
    const __m512i product0 = _mm512_mul_epu32(state.word[0], multiply0);
    const __m512i product1 = _mm512_mul_epu32(state.word[2], multiply1);
    const __m512i high0 = _mm512_srli_epi64(product0, 32), high1 = _mm512_srli_epi64(product1, 32);
    const __m512i next0 =
        _mm512_ternarylogic_epi64(high1, state.word[1], _mm512_set1_epi64(key0), kXor3);
    const __m512i next2 =
        _mm512_ternarylogic_epi64(high0, state.word[3], _mm512_set1_epi64(key1), kXor3);
    state = {{next0, product1, next2, product0}};
  }
}

static void draw(const thanos::Draw& draw, int64_t elements, uint16_t* out) {
  const __m512i site = _mm512_set1_epi64(draw.site);
  const __m512i low = _mm512_set1_epi64(static_cast<uint32_t>(draw.row));
  const __m512i high = _mm512_set1_epi64(static_cast<uint32_t>(draw.row >> 32));
  const __m512i lanes = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
  for (int64_t group = 0; group * thanos::kGroup < elements; group++, out += thanos::kGroup) {
    Eight first{{_mm512_add_epi64(lanes, _mm512_set1_epi64(group * kCounters)), site, low, high}};
    Eight second{
        {_mm512_add_epi64(lanes, _mm512_set1_epi64(group * kCounters + 8)), site, low, high}};
    rounds(first, draw.key);
    rounds(second, draw.key);
    for (int word = 0; word < 4; word++) {
      const __m512i both =
          _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(first.word[word])),
                             _mm512_cvtepi64_epi32(second.word[word]), 1);
      const auto to = reinterpret_cast<__m256i*>(out + word * 32);
      _mm256_storeu_si256(to, _mm512_cvtepi32_epi16(both));
      _mm256_storeu_si256(to + 1, _mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
    }
  }
}

#else

static void draw(const thanos::Draw& draw, int64_t elements, uint16_t* out) {
  for (int64_t group = 0; group * thanos::kGroup < elements; group++, out += thanos::kGroup) {
    uint32_t word[4][kCounters];
    for (int lane = 0; lane < kCounters; lane++) {
      word[0][lane] = static_cast<uint32_t>(group * kCounters + lane);
      word[1][lane] = draw.site;
      word[2][lane] = static_cast<uint32_t>(draw.row);
      word[3][lane] = static_cast<uint32_t>(draw.row >> 32);
    }
    uint32_t key0 = static_cast<uint32_t>(draw.key), key1 = static_cast<uint32_t>(draw.key >> 32);
    for (int round = 0; round < kRounds; round++, key0 += kWeyl0, key1 += kWeyl1) {
      for (int lane = 0; lane < kCounters; lane++) {
        const uint64_t product0 = kMultiply0 * word[0][lane], product1 = kMultiply1 * word[2][lane];
        word[0][lane] = static_cast<uint32_t>(product1 >> 32) ^ word[1][lane] ^ key0;
        word[1][lane] = static_cast<uint32_t>(product1);
        word[2][lane] = static_cast<uint32_t>(product0 >> 32) ^ word[3][lane] ^ key1;
        word[3][lane] = static_cast<uint32_t>(product0);
      }
    }
    for (int part = 0; part < 8; part++) {
      for (int lane = 0; lane < kCounters; lane++) {
        out[part * kCounters + lane] =
            static_cast<uint16_t>(word[part / 2][lane] >> (part % 2 * 16));
      }
    }
  }
}

#endif

}  // namespace
