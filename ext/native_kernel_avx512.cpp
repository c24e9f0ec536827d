// The kernel for x86-64 with AVX-512 (Intel servers since 2017, AMD since 2022).
#include <cstring>

#include "native_dispatch.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#define KERNEL __attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl,bmi,bmi2,lzcnt,popcnt")))
#define KERNEL_NAMESPACE avx512

namespace pyserve {
namespace avx512 {
namespace {

KERNEL inline uint64_t space_mask(const uint8_t* block) {
  const __m512i bytes = _mm512_loadu_si512(block);
  const __m512i controls = _mm512_sub_epi8(bytes, _mm512_set1_epi8(9));
  return _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(' ')) | _mm512_testn_epi8_mask(bytes, bytes) |
         _mm512_cmplt_epu8_mask(controls, _mm512_set1_epi8(5));
}

KERNEL inline uint32_t match_slots(const Bucket& bucket, uint16_t fingerprint) {
  const __m256i wanted = _mm256_set1_epi16(static_cast<short>(fingerprint));
  const __m256i slots = _mm256_load_si256(reinterpret_cast<const __m256i*>(&bucket));
  return static_cast<uint32_t>(_mm256_cmpeq_epi16_mask(slots, wanted)) & 0x3fff;
}

KERNEL inline uint32_t first_slot(uint32_t matches) {
  return static_cast<uint32_t>(__builtin_ctz(matches | 1U << Bucket::SLOTS));
}

KERNEL inline bool has_more(uint32_t matches) { return (matches & (matches - 1)) != 0; }

}  // namespace
}  // namespace avx512
}  // namespace pyserve

#include "native_kernel.hpp"

namespace pyserve {

const Kernel* avx512_kernel() {
  static const Kernel kernel{"avx512", avx512::compute_hidden, avx512::compute_scores};
  const bool runs = avx2_kernel() != nullptr && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return runs ? &kernel : nullptr;
}

}  // namespace pyserve

#else

namespace pyserve {
const Kernel* avx512_kernel() { return nullptr; }
}  // namespace pyserve

#endif
