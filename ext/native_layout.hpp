// The tables that the native engine answers from, as plain data: native_tables.cpp fills them, native_kernel.hpp reads them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "model_file.hpp"

namespace pyserve {

// Memory whose start lies on a cache line, so that no bucket of a table crosses one. Starts out as zeros.
template <typename Item>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(size_t size) {
    const size_t bytes = (size * sizeof(Item) + LINE - 1) / LINE * LINE;
    items_.reset(static_cast<Item*>(std::aligned_alloc(LINE, bytes == 0 ? LINE : bytes)));
    if (items_ == nullptr) {
      throw std::bad_alloc();
    }
    std::memset(static_cast<void*>(items_.get()), 0, bytes);
  }
  Item* data() { return items_.get(); }
  const Item* data() const { return items_.get(); }
  Item& operator[](size_t index) { return items_.get()[index]; }
  const Item& operator[](size_t index) const { return items_.get()[index]; }
  explicit operator bool() const { return items_ != nullptr; }

 private:
  static constexpr size_t LINE = 64;
  struct Free {
    void operator()(Item* items) const { std::free(items); }
  };
  std::unique_ptr<Item[], Free> items_;
};

// A bucket of a hash table: half a cache line. What belongs to a fingerprint has the number `start` plus the fingerprint's place.
struct alignas(32) Bucket {
  static constexpr uint32_t SLOTS = 14;
  uint16_t fingerprints[SLOTS];
  uint32_t start;
};
static_assert(sizeof(Bucket) == 32);

// A text of at most 16 bytes, filled up with NULs, as two numbers.
struct Key {
  uint64_t low;
  uint64_t high;
};

// A word or a label of at most 16 bytes. The key is the text, filled up with NULs: no text holds a NUL, so keys are exact.
struct alignas(32) WordEntry {
  static constexpr size_t KEY_SIZE = 16;
  uint8_t key[KEY_SIZE];
  uint64_t row;  // of a word, as RowStore takes it
  int32_t hash;  // FNV-1a as fastText computes it
  uint32_t is_label;  // a label of the dictionary, not a word
};

// From texts of at most 16 bytes to entries. Fingerprints are odd, so that 0 means an empty slot. Entry 0 is nobody's: look-ups
// that find nothing go there, so that they do not wait for memory.
struct WordTable {
  uint64_t seed[2] = {0, 0};
  uint32_t buckets_number = 1;
  AlignedArray<Bucket> buckets;
  AlignedArray<WordEntry> entries;  // in the order of the buckets, from 1
};

// From texts of more than 16 bytes to entries, by linear probing. They are rare.
struct LongWordTable {
  struct Entry {
    const uint8_t* text = nullptr;  // in the model file
    size_t size = 0;                // 0: empty
    uint64_t row = 0;
    int32_t hash = 0;
    bool is_label = false;
  };
  uint32_t mask = 0;
  AlignedArray<Entry> entries;
};

// Remainders of a division by a number fixed at load, by multiplication. Method: T. Granlund and P. L. Montgomery, "Division
// by invariant integers using multiplication" (1994), for 65-bit multipliers.
struct Modulus {
  uint64_t divisor = 2;
  uint64_t multiplier = 0;
  uint32_t shift = 0;
  uint32_t mask = ~uint32_t{0};  // 0 where all remainders are 0
};

// From n-gram ids to rows. An id is mixed one-to-one within `bits` bits; the mixed numbers of one bucket are at most 65,535
// consecutive ones, so that their last 16 bits are exact. Empty slots repeat the first one, or hold what cannot come up. Number
// 0 is no row's: look-ups that find nothing go there.
struct NgramTable {
  uint32_t bits = 1;
  uint32_t multiplier = 1;  // odd
  uint32_t buckets_number = 1;
  AlignedArray<Bucket> buckets;
};

// How the rows of the input matrix are kept, and what stands for a row in lists of them.
enum class RowKind {
  dense,      // in the file; its number there
  quantized,  // in the file; its number there
  packed,     // quantized with parts of 2 dimensions, at most 8 codes with the norm's; these: code m in byte m, the norm's in byte 7
};

struct RowStore {
  RowKind kind = RowKind::dense;
  uint32_t dim = 0;
  MatrixView matrix;
  AlignedArray<float> centroids;  // packed: [nsubq][256][2]; quantized: as in the file, but aligned
  AlignedArray<float> norms;      // [256]; ones where norms are not quantized
  // What stands for the rows of n-grams, in the order of NgramTable, where they are a selection.
  AlignedArray<uint64_t> ngrams;
};

// The output matrix.
struct OutputLayer {
  uint32_t labels = 0;
  uint32_t padded_labels = 0;  // 4, 8 or a multiple of 16
  uint32_t dim = 0;
  MatrixView matrix;
  AlignedArray<float> transposed;  // [dim][padded_labels], where that is small; quantized: without the norms
  AlignedArray<float> norms;       // [padded_labels], quantized with qnorm only
};

enum class NgramRows {
  none,       // no n-gram has a row
  all,        // row = words + id
  selection,  // as NgramTable says
};

struct Tables {
  int32_t words_number = 0;
  int32_t word_ngrams = 1;
  int32_t minn = 0;
  int32_t maxn = 0;
  NgramRows ngram_rows = NgramRows::none;
  Modulus bucket;
  WordTable words;
  LongWordTable long_words;
  NgramTable ngrams;
  RowStore rows;
  OutputLayer output;
};

// fastText's hash takes bytes for signed numbers. The tests build an engine that does not, to see that they notice.
#if !defined(PYSERVE_HASH_BYTE)
#define PYSERVE_HASH_BYTE int8_t
#endif

constexpr bool HASH_SIGNED = static_cast<PYSERVE_HASH_BYTE>(-1) < 0;

// FNV-1a over signed bytes: Dictionary::hash.
constexpr uint32_t HASH_START = 2166136261U;
inline uint32_t hash_byte(uint32_t hash, uint8_t byte) {
  return (hash ^ static_cast<uint32_t>(static_cast<PYSERVE_HASH_BYTE>(byte))) * 16777619U;
}
inline uint32_t hash_bytes(uint32_t hash, const uint8_t* text, size_t size) {
  for (size_t i = 0; i < size; i++) {
    hash = hash_byte(hash, text[i]);
  }
  return hash;
}


// A 64-bit hash of a key of 16 bytes, given as two numbers.
inline uint64_t hash_key(uint64_t low, uint64_t high, const uint64_t* seed) {
  const auto product = static_cast<unsigned __int128>(low ^ seed[0]) * (high ^ seed[1]);
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

inline uint32_t word_bucket(uint64_t hash, uint32_t buckets_number) {
  return static_cast<uint32_t>((hash >> 32) * buckets_number >> 32);
}
inline uint16_t word_fingerprint(uint64_t hash) { return static_cast<uint16_t>(hash | 1); }

// A one-to-one map of numbers of `bits` bits. Most ids are hashes already; the rest is for those that are not.
inline uint32_t mix_ngram(uint32_t id, const NgramTable& table) {
  return id * table.multiplier & static_cast<uint32_t>((uint64_t{1} << table.bits) - 1);
}
inline uint32_t ngram_bucket(uint32_t mixed, const NgramTable& table) {
  return static_cast<uint32_t>(uint64_t{mixed} * table.buckets_number >> table.bits);
}

inline uint32_t remainder_of(uint64_t number, const Modulus& modulus) {
  const auto high = static_cast<uint64_t>((static_cast<unsigned __int128>(number) * modulus.multiplier) >> 64);
  const uint64_t quotient = (((number - high) >> 1) + high) >> modulus.shift;
  return static_cast<uint32_t>(number - quotient * modulus.divisor) & modulus.mask;
}

// A row of a packed matrix, its codes and its norm's in one number.
inline uint64_t pack_row(const MatrixView& matrix, size_t row) {
  const auto nsubq = static_cast<size_t>(matrix.quantizer.nsubq);
  // SAFETY: eight bytes are read in any case: behind the last row's codes the file has the quantizer, of over a thousand bytes.
  const uint64_t codes = load_unaligned<uint64_t>(matrix.codes + row * nsubq) & ~uint64_t{0} >> (64 - 8 * nsubq);
  return matrix.qnorm ? codes | static_cast<uint64_t>(matrix.norm_codes[row]) << 56 : codes;
}

// Fills the tables from a checked file, which must outlive them. Throws std::bad_alloc, or std::length_error with a reason
// where a table cannot be built.
void build_tables(const ModelFile& model, Tables& tables);

}  // namespace pyserve
