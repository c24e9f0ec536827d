// The kernel for x86-64 with AVX-512 (Intel servers since 2017, AMD since 2022).
#include <cstring>

#include "native_dispatch.hpp"

#if defined(__x86_64__) && !defined(PYSERVE_PORTABLE)
#if !defined(__clang__)
// gcc's own header sets "undefined" vectors from themselves, and gcc 12 warns of that wherever they are inlined.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
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

// FNV-1a of 16 keys at once, byte by byte.
#define HASH_LANES 16
KERNEL inline void hash_lanes(const Key* keys, const uint8_t* sizes, const uint16_t* tokens, int32_t* hashes) {
  // Four keys in every quarter; then one number of four bytes of every key beside the other.
  __m512i rows[4];
  alignas(16) uint8_t lane_sizes[16];
  alignas(64) int32_t lanes[16];
  for (int i = 0; i < 4; i++) {
    const __m512i first = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(keys + tokens[i])));
    const __m512i second = _mm512_inserti32x4(first, _mm_loadu_si128(reinterpret_cast<const __m128i*>(keys + tokens[i + 4])), 1);
    const __m512i third = _mm512_inserti32x4(second, _mm_loadu_si128(reinterpret_cast<const __m128i*>(keys + tokens[i + 8])), 2);
    rows[i] = _mm512_inserti32x4(third, _mm_loadu_si128(reinterpret_cast<const __m128i*>(keys + tokens[i + 12])), 3);
  }
  for (int i = 0; i < 16; i++) {
    lane_sizes[i] = sizes[tokens[i]];
    lanes[i] = tokens[i];
  }
  const __m512i low01 = _mm512_unpacklo_epi32(rows[0], rows[1]);
  const __m512i high01 = _mm512_unpackhi_epi32(rows[0], rows[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(rows[2], rows[3]);
  const __m512i high23 = _mm512_unpackhi_epi32(rows[2], rows[3]);
  const __m512i fours[4] = {_mm512_unpacklo_epi64(low01, low23), _mm512_unpackhi_epi64(low01, low23),
                            _mm512_unpacklo_epi64(high01, high23), _mm512_unpackhi_epi64(high01, high23)};
  const __m128i size = _mm_load_si128(reinterpret_cast<const __m128i*>(lane_sizes));
  const __m512i prime = _mm512_set1_epi32(16777619);
  __m512i hash = _mm512_set1_epi32(static_cast<int>(HASH_START));
  for (int four = 0; four < 4; four++) {
    // Most have at most 12 bytes. A branch on more than that is foreseen; one on each four would not be.
    if (four == 3 && _mm_cmpgt_epi8_mask(size, _mm_set1_epi8(12)) == 0) {
      break;
    }
    __m512i bytes = fours[four];
    for (int i = 0; i < 4; i++) {
      const __mmask16 inside = _mm_cmpgt_epi8_mask(size, _mm_set1_epi8(static_cast<char>(4 * four + i)));
      const __m512i shifted = _mm512_slli_epi32(bytes, 24);
      const __m512i byte = HASH_SIGNED ? _mm512_srai_epi32(shifted, 24) : _mm512_srli_epi32(shifted, 24);
      hash = _mm512_mask_mullo_epi32(hash, inside, _mm512_xor_si512(hash, byte), prime);
      bytes = _mm512_srli_epi32(bytes, 8);
    }
  }
  _mm512_i32scatter_epi32(hashes, _mm512_load_si512(lanes), hash, 4);
}

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
