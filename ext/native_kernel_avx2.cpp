// The kernel for x86-64 with AVX2 (Intel since 2013, AMD since 2015).
#include <cstring>

#include "native_dispatch.hpp"

#if defined(__x86_64__)
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
