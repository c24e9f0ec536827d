// The kernel for x86-64 with AVX2 (Intel since 2013, AMD since 2015).
#include <cstring>

#include "native_dispatch.hpp"

#if defined(__x86_64__) && !defined(PYSERVE_PORTABLE)
#include <immintrin.h>

#define KERNEL __attribute__((target("avx2,bmi,bmi2,lzcnt,popcnt")))
#define KERNEL_NAMESPACE avx2

namespace pyserve {
namespace avx2 {
namespace {

KERNEL inline uint32_t space_mask_32(const uint8_t* block) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block));
  const __m256i controls = _mm256_sub_epi8(bytes, _mm256_set1_epi8(9));
  const __m256i spaces = _mm256_or_si256(
      _mm256_or_si256(_mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(' ')), _mm256_cmpeq_epi8(bytes, _mm256_setzero_si256())),
      _mm256_cmpeq_epi8(_mm256_min_epu8(controls, _mm256_set1_epi8(4)), controls));
  return static_cast<uint32_t>(_mm256_movemask_epi8(spaces));
}

KERNEL inline uint64_t space_mask(const uint8_t* block) {
  return space_mask_32(block) | static_cast<uint64_t>(space_mask_32(block + 32)) << 32;
}

// Two bits for every slot.
KERNEL inline uint32_t match_slots(const Bucket& bucket, uint16_t fingerprint) {
  const __m256i wanted = _mm256_set1_epi16(static_cast<short>(fingerprint));
  const __m256i slots = _mm256_load_si256(reinterpret_cast<const __m256i*>(&bucket));
  return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi16(slots, wanted))) & 0x0fffffff;
}

KERNEL inline uint32_t first_slot(uint32_t matches) {
  return static_cast<uint32_t>(__builtin_ctz(matches | 1U << (2 * Bucket::SLOTS))) / 2;
}

KERNEL inline bool has_more(uint32_t matches) {
  const uint32_t without_bit = matches & (matches - 1);
  return (without_bit & (without_bit - 1)) != 0;
}

// FNV-1a of 8 keys at once, byte by byte.
#define HASH_LANES 8
KERNEL inline void hash_lanes(const Key* keys, const uint8_t* sizes, const uint16_t* tokens, int32_t* hashes) {
  // Four keys below, four above; then one number of four bytes of every key beside the other.
  __m256i rows[4];
  alignas(32) int32_t lane_sizes[8];
  for (int i = 0; i < 4; i++) {
    rows[i] = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(keys + tokens[i]))),
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(keys + tokens[i + 4])), 1);
  }
  for (int i = 0; i < 8; i++) {
    lane_sizes[i] = sizes[tokens[i]];
  }
  const __m256i low01 = _mm256_unpacklo_epi32(rows[0], rows[1]);
  const __m256i high01 = _mm256_unpackhi_epi32(rows[0], rows[1]);
  const __m256i low23 = _mm256_unpacklo_epi32(rows[2], rows[3]);
  const __m256i high23 = _mm256_unpackhi_epi32(rows[2], rows[3]);
  const __m256i fours[4] = {_mm256_unpacklo_epi64(low01, low23), _mm256_unpackhi_epi64(low01, low23),
                            _mm256_unpacklo_epi64(high01, high23), _mm256_unpackhi_epi64(high01, high23)};
  const __m256i size = _mm256_load_si256(reinterpret_cast<const __m256i*>(lane_sizes));
  const __m256i prime = _mm256_set1_epi32(16777619);
  __m256i hash = _mm256_set1_epi32(static_cast<int>(HASH_START));
  for (int four = 0; four < 4; four++) {
    // Most have at most 12 bytes. A branch on more than that is foreseen; one on each four would not be.
    if (four == 3 && _mm256_movemask_epi8(_mm256_cmpgt_epi32(size, _mm256_set1_epi32(12))) == 0) {
      break;
    }
    __m256i bytes = fours[four];
    for (int i = 0; i < 4; i++) {
      const __m256i shifted = _mm256_slli_epi32(bytes, 24);
      const __m256i byte = HASH_SIGNED ? _mm256_srai_epi32(shifted, 24) : _mm256_srli_epi32(shifted, 24);
      const __m256i next = _mm256_mullo_epi32(_mm256_xor_si256(hash, byte), prime);
      hash = _mm256_blendv_epi8(hash, next, _mm256_cmpgt_epi32(size, _mm256_set1_epi32(4 * four + i)));
      bytes = _mm256_srli_epi32(bytes, 8);
    }
  }
  alignas(32) int32_t results[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(results), hash);
  for (int i = 0; i < 8; i++) {
    hashes[tokens[i]] = results[i];
  }
}

}  // namespace
}  // namespace avx2
}  // namespace pyserve

#include "native_kernel.hpp"

namespace pyserve {

const Kernel* avx2_kernel() {
  static const Kernel kernel{"avx2", avx2::compute_hidden, avx2::compute_scores};
  const bool runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("lzcnt");
  return runs ? &kernel : nullptr;
}

}  // namespace pyserve

#else

namespace pyserve {
const Kernel* avx2_kernel() { return nullptr; }
}  // namespace pyserve

#endif
