// The kernel for any processor: SSE2 on x86-64, which has it always, and plain C++ elsewhere. The tests build the plain one with
// PYSERVE_PORTABLE on any machine.
#include <cstring>

#include "native_dispatch.hpp"

#if defined(__SSE2__) && !defined(PYSERVE_PORTABLE)
#include <emmintrin.h>
#endif

#define KERNEL
#define KERNEL_NAMESPACE baseline

namespace pyserve {
namespace baseline {
namespace {

#if defined(__SSE2__) && !defined(PYSERVE_PORTABLE)

inline uint64_t space_mask(const uint8_t* block) {
  uint64_t mask = 0;
  for (int i = 0; i < 4; i++) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block) + i);
    const __m128i controls = _mm_sub_epi8(bytes, _mm_set1_epi8(9));
    const __m128i spaces = _mm_or_si128(
        _mm_or_si128(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(' ')), _mm_cmpeq_epi8(bytes, _mm_setzero_si128())),
        _mm_cmpeq_epi8(_mm_min_epu8(controls, _mm_set1_epi8(4)), controls));
    mask |= static_cast<uint64_t>(static_cast<uint32_t>(_mm_movemask_epi8(spaces))) << (16 * i);
  }
  return mask;
}

inline uint32_t match_slots(const Bucket& bucket, uint16_t fingerprint) {
  const __m128i wanted = _mm_set1_epi16(static_cast<short>(fingerprint));
  const auto* halves = reinterpret_cast<const __m128i*>(&bucket);
  const __m128i low = _mm_cmpeq_epi16(_mm_load_si128(halves), wanted);
  const __m128i high = _mm_cmpeq_epi16(_mm_load_si128(halves + 1), wanted);
  return static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(low, high))) & 0x3fff;
}

#else

inline uint64_t space_mask(const uint8_t* block) {
  uint64_t mask = 0;
  for (int i = 0; i < 64; i++) {
    const uint8_t byte = block[i];
    const bool space = (byte == ' ') | (byte == 0) | (static_cast<uint8_t>(byte - 9) < 5);
    mask |= static_cast<uint64_t>(space) << i;
  }
  return mask;
}

inline uint32_t match_slots(const Bucket& bucket, uint16_t fingerprint) {
  uint32_t mask = 0;
  for (uint32_t slot = 0; slot < Bucket::SLOTS; slot++) {
    mask |= static_cast<uint32_t>(bucket.fingerprints[slot] == fingerprint) << slot;
  }
  return mask;
}

#endif

inline uint32_t first_slot(uint32_t matches) { return static_cast<uint32_t>(__builtin_ctz(matches | 1U << Bucket::SLOTS)); }
inline bool has_more(uint32_t matches) { return (matches & (matches - 1)) != 0; }

}  // namespace
}  // namespace baseline
}  // namespace pyserve

#include "native_kernel.hpp"

namespace pyserve {

const Kernel* baseline_kernel() {
  static const Kernel kernel{"baseline", baseline::compute_hidden, baseline::compute_scores};
  return &kernel;
}

}  // namespace pyserve
