#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "native_layout.hpp"

namespace pyserve {
namespace {

constexpr uint32_t MEAN_LOAD = 6;  // entries in a bucket, at first
constexpr int ATTEMPTS = 400;
constexpr int ATTEMPTS_PER_SIZE = 4;
constexpr uint64_t CELLS_COPIED = 1 << 18;  // an output matrix of at most 1 MB is kept in the order that answers fastest

// A sequence of numbers without a pattern (S. Vigna's splitmix64), to draw seeds from: the same at every load.
class Random {
 public:
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15U;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_ = 0;
};

Modulus make_modulus(uint32_t divisor) {
  Modulus modulus;
  if (divisor <= 1) {
    modulus.mask = 0;
    return modulus;
  }
  modulus.divisor = divisor;
  const uint32_t log2 = 31 - __builtin_clz(divisor);
  if ((divisor & (divisor - 1)) == 0) {
    modulus.shift = log2 - 1;
    return modulus;
  }
  // The multiplier is 2^64 + multiplier: ceil(2^(65 + log2) / divisor).
  const auto dividend = static_cast<unsigned __int128>(1) << (64 + log2);
  const auto quotient = static_cast<uint64_t>(dividend / divisor);
  const auto rest = static_cast<uint64_t>(dividend % divisor);
  modulus.multiplier = 2 * quotient + (2 * rest >= divisor ? 1 : 0) + 1;
  modulus.shift = log2;
  return modulus;
}

struct Entry {
  std::string_view text;
  uint64_t row;
  bool is_label;
};

bool can_pack(const MatrixView& matrix) {
  return matrix.quantized && matrix.quantizer.dsub == 2 && matrix.quantizer.nsubq + (matrix.qnorm ? 1 : 0) <= 8;
}

// What stands for a row of the file's matrix.
uint64_t make_row(const MatrixView& matrix, size_t row) { return can_pack(matrix) ? pack_row(matrix, row) : row; }

// The entries by which a token is found. Where a text comes twice, fastText finds the last one.
void split_entries(const ModelFile& model, std::vector<Entry>& short_ones, std::vector<Entry>& long_ones) {
  const auto add = [&](std::string_view text, uint64_t row, bool is_label) {
    (text.size() <= WordEntry::KEY_SIZE ? short_ones : long_ones).push_back({text, row, is_label});
  };
  for (size_t i = 0; i < model.words.size(); i++) {
    add(model.words[i].text, make_row(model.input, i), false);
  }
  for (const EntryView& label : model.labels) {
    add(label.text, 0, true);
  }
}

WordEntry make_entry(const Entry& entry) {
  WordEntry made{};
  std::memcpy(made.key, entry.text.data(), entry.text.size());
  made.hash = static_cast<int32_t>(
      hash_bytes(HASH_START, reinterpret_cast<const uint8_t*>(entry.text.data()), entry.text.size()));
  made.row = entry.row;
  made.is_label = entry.is_label;
  return made;
}

uint64_t hash_entry(const WordEntry& entry, const uint64_t* seed) {
  return hash_key(load_unaligned<uint64_t>(entry.key), load_unaligned<uint64_t>(entry.key + 8), seed);
}

// Puts numbers into buckets; returns false where one overflows.
bool fill_counts(const std::vector<uint32_t>& bucket_of, std::vector<uint32_t>& counts) {
  std::fill(counts.begin(), counts.end(), 0);
  for (const uint32_t bucket : bucket_of) {
    if (++counts[bucket] > Bucket::SLOTS) {
      return false;
    }
  }
  return true;
}

void set_starts(const std::vector<uint32_t>& counts, AlignedArray<Bucket>& buckets) {
  uint32_t start = 1;
  for (size_t i = 0; i < counts.size(); i++) {
    buckets[i].start = start;
    start += counts[i];
  }
}

uint32_t grow(uint32_t number, int attempt) { return attempt % ATTEMPTS_PER_SIZE == 0 ? number + number / 16 + 1 : number; }

void build_words(const std::vector<Entry>& entries, WordTable& table) {
  std::vector<WordEntry> made;
  made.reserve(entries.size());
  for (const Entry& entry : entries) {
    made.push_back(make_entry(entry));
  }
  Random random;
  std::vector<uint32_t> bucket_of(entries.size());
  std::vector<uint32_t> counts;
  table.buckets_number = static_cast<uint32_t>(entries.size() / MEAN_LOAD + 1);
  for (int attempt = 1;; attempt++) {
    table.seed[0] = random.next();
    table.seed[1] = random.next();
    counts.assign(table.buckets_number, 0);
    for (size_t i = 0; i < made.size(); i++) {
      bucket_of[i] = word_bucket(hash_entry(made[i], table.seed), table.buckets_number);
    }
    if (fill_counts(bucket_of, counts)) {
      break;
    }
    if (attempt == ATTEMPTS) {
      throw std::length_error("no table could be built for the words of this model");
    }
    table.buckets_number = grow(table.buckets_number, attempt);
  }
  table.buckets = AlignedArray<Bucket>(table.buckets_number);
  table.entries = AlignedArray<WordEntry>(made.size() + 1);
  set_starts(counts, table.buckets);
  std::fill(counts.begin(), counts.end(), 0);
  for (size_t i = 0; i < made.size(); i++) {
    Bucket& bucket = table.buckets[bucket_of[i]];
    const uint16_t fingerprint = word_fingerprint(hash_entry(made[i], table.seed));
    uint32_t slot = 0;  // a text that is there already takes its place: the last one counts
    while (slot < counts[bucket_of[i]] &&
           std::memcmp(table.entries[bucket.start + slot].key, made[i].key, WordEntry::KEY_SIZE) != 0) {
      slot++;
    }
    bucket.fingerprints[slot] = fingerprint;
    table.entries[bucket.start + slot] = made[i];
    counts[bucket_of[i]] = std::max(counts[bucket_of[i]], slot + 1);
  }
}

void build_long_words(const std::vector<Entry>& entries, LongWordTable& table) {
  uint64_t capacity = 4;
  while (capacity < 2 * entries.size()) {
    capacity *= 2;
  }
  table.mask = static_cast<uint32_t>(capacity - 1);
  table.entries = AlignedArray<LongWordTable::Entry>(capacity);
  for (const Entry& entry : entries) {
    LongWordTable::Entry made;
    made.text = reinterpret_cast<const uint8_t*>(entry.text.data());
    made.size = entry.text.size();
    const uint32_t hash = hash_bytes(HASH_START, made.text, made.size);
    made.hash = static_cast<int32_t>(hash);
    made.row = entry.row;
    made.is_label = entry.is_label;
    uint32_t place = hash & table.mask;
    while (table.entries[place].size != 0 && (table.entries[place].size != made.size ||
                                              std::memcmp(table.entries[place].text, made.text, made.size) != 0)) {
      place = (place + 1) & table.mask;
    }
    table.entries[place] = made;
  }
}

struct Kept {
  uint32_t id;
  uint32_t row;  // behind the words' rows
};

// Builds the table of a pruned model, and what stands for the rows in its order.
void build_ngrams(const ModelFile& model, NgramTable& table, AlignedArray<uint64_t>& rows) {
  const auto size = static_cast<size_t>(model.pruneidx_size);
  std::vector<Kept> kept(size);
  for (size_t i = 0; i < size; i++) {
    kept[i].id = load_unaligned<uint32_t>(model.pruneidx + 8 * i);
    kept[i].row = load_unaligned<uint32_t>(model.pruneidx + 8 * i + 4);
  }
  table.bits = 2;
  while ((uint64_t{1} << table.bits) < static_cast<uint64_t>(model.args.bucket)) {
    table.bits++;
  }
  Random random;
  std::vector<uint32_t> bucket_of(size);
  std::vector<uint32_t> counts;
  const auto least = static_cast<uint32_t>((uint64_t{1} << table.bits) / 65000 + 1);
  table.buckets_number = std::max(least, static_cast<uint32_t>(size / MEAN_LOAD + 1));
  for (int attempt = 1;; attempt++) {
    table.multiplier = static_cast<uint32_t>(random.next()) | 1;
    counts.assign(table.buckets_number, 0);
    for (size_t i = 0; i < size; i++) {
      bucket_of[i] = ngram_bucket(mix_ngram(kept[i].id, table), table);
    }
    if (fill_counts(bucket_of, counts)) {
      break;
    }
    if (attempt == ATTEMPTS) {
      throw std::length_error("no table could be built for the n-grams of this model");
    }
    table.buckets_number = grow(table.buckets_number, attempt);
  }
  table.buckets = AlignedArray<Bucket>(table.buckets_number);
  set_starts(counts, table.buckets);
  for (uint32_t i = 0; i < table.buckets_number; i++) {
    // The first number that is mapped to the next bucket comes right behind the last of this one: it is never looked for here.
    const uint64_t next = ((uint64_t{i} + 1) << table.bits) + table.buckets_number - 1;
    std::fill_n(table.buckets[i].fingerprints, Bucket::SLOTS, static_cast<uint16_t>(next / table.buckets_number));
  }
  std::fill(counts.begin(), counts.end(), 0);
  rows = AlignedArray<uint64_t>(size + 1);
  for (size_t i = 0; i < size; i++) {
    Bucket& bucket = table.buckets[bucket_of[i]];
    const uint32_t slot = counts[bucket_of[i]]++;
    const auto fingerprint = static_cast<uint16_t>(mix_ngram(kept[i].id, table));
    std::fill(bucket.fingerprints + slot, bucket.fingerprints + Bucket::SLOTS, fingerprint);
    if (slot > 0) {  // the slots behind the last one repeat the first
      std::fill(bucket.fingerprints + slot + 1, bucket.fingerprints + Bucket::SLOTS, bucket.fingerprints[0]);
    }
    rows[bucket.start + slot] = make_row(model.input, model.words.size() + kept[i].row);
  }
}

float centroid(const QuantizerView& quantizer, size_t index) {
  return load_unaligned<float>(quantizer.centroids + index * sizeof(float));
}

// Where a centroid begins: ProductQuantizer::get_centroids.
size_t centroid_index(const QuantizerView& quantizer, int32_t part, uint32_t code) {
  if (part == quantizer.nsubq - 1) {
    return static_cast<size_t>(part) * 256 * quantizer.dsub + static_cast<size_t>(code) * quantizer.lastdsub;
  }
  return (static_cast<size_t>(part) * 256 + code) * quantizer.dsub;
}

int32_t part_size(const QuantizerView& quantizer, int32_t part) {
  return part == quantizer.nsubq - 1 ? quantizer.lastdsub : quantizer.dsub;
}

AlignedArray<float> copy_norms(const MatrixView& matrix) {
  AlignedArray<float> norms(256);
  for (uint32_t code = 0; code < 256; code++) {
    norms[code] = matrix.qnorm ? centroid(matrix.norm_quantizer, code) : 1.0F;
  }
  return norms;
}

// The centroids of parts of 2 dimensions; the last part may have only one, and a 0 then.
AlignedArray<float> pair_centroids(const QuantizerView& quantizer) {
  AlignedArray<float> pairs(static_cast<size_t>(quantizer.nsubq) * 256 * 2);
  for (int32_t part = 0; part < quantizer.nsubq; part++) {
    for (uint32_t code = 0; code < 256; code++) {
      for (int32_t i = 0; i < part_size(quantizer, part); i++) {
        pairs[(static_cast<size_t>(part) * 256 + code) * 2 + i] = centroid(quantizer, centroid_index(quantizer, part, code) + i);
      }
    }
  }
  return pairs;
}

void build_rows(const ModelFile& model, RowStore& rows) {
  rows.matrix = model.input;
  rows.dim = static_cast<uint32_t>(model.args.dim);
  if (!model.input.quantized) {
    return;
  }
  rows.norms = copy_norms(model.input);
  if (can_pack(model.input)) {
    rows.kind = RowKind::packed;
    rows.centroids = pair_centroids(model.input.quantizer);
    return;
  }
  rows.kind = RowKind::quantized;
  const size_t cells = static_cast<size_t>(model.args.dim) * 256;
  rows.centroids = AlignedArray<float>(cells);
  std::memcpy(rows.centroids.data(), model.input.quantizer.centroids, cells * sizeof(float));
}

float output_cell(const MatrixView& matrix, size_t row, int32_t column) {
  if (!matrix.quantized) {
    return load_unaligned<float>(matrix.cells + (row * matrix.columns + column) * sizeof(float));
  }
  const QuantizerView& quantizer = matrix.quantizer;
  const int32_t part = column / quantizer.dsub;
  const uint32_t code = matrix.codes[row * quantizer.nsubq + part];
  return centroid(quantizer, centroid_index(quantizer, part, code) + column % quantizer.dsub);
}

void build_output(const ModelFile& model, OutputLayer& output) {
  const MatrixView& matrix = model.output;
  output.matrix = matrix;
  output.labels = static_cast<uint32_t>(matrix.rows);
  output.padded_labels = output.labels <= 4 ? 4 : output.labels <= 8 ? 8 : (output.labels + 15) / 16 * 16;
  output.dim = static_cast<uint32_t>(matrix.columns);
  if (matrix.quantized && matrix.qnorm) {
    output.norms = AlignedArray<float>(output.padded_labels);
    for (uint32_t label = 0; label < output.labels; label++) {
      output.norms[label] = centroid(matrix.norm_quantizer, matrix.norm_codes[label]);
    }
  }
  if (model.args.loss == LossName::hs || static_cast<uint64_t>(output.padded_labels) * output.dim > CELLS_COPIED) {
    return;  // a tree is walked row by row
  }
  output.transposed = AlignedArray<float>(static_cast<size_t>(output.dim) * output.padded_labels);
  for (uint32_t column = 0; column < output.dim; column++) {
    for (uint32_t label = 0; label < output.labels; label++) {
      output.transposed[static_cast<size_t>(column) * output.padded_labels + label] =
          output_cell(matrix, label, static_cast<int32_t>(column));
    }
  }
}

}  // namespace

void build_tables(const ModelFile& model, Tables& tables) {
  tables.words_number = static_cast<int32_t>(model.words.size());
  tables.word_ngrams = model.args.word_ngrams;
  tables.minn = model.args.minn;
  tables.maxn = model.args.maxn;
  tables.bucket = make_modulus(static_cast<uint32_t>(model.args.bucket));
  std::vector<Entry> short_ones;
  std::vector<Entry> long_ones;
  split_entries(model, short_ones, long_ones);
  build_words(short_ones, tables.words);
  build_long_words(long_ones, tables.long_words);
  build_rows(model, tables.rows);
  if (!model.pruned()) {
    tables.ngram_rows = NgramRows::all;
  } else if (model.pruneidx_size > 0) {
    tables.ngram_rows = NgramRows::selection;
    build_ngrams(model, tables.ngrams, tables.rows.ngrams);
  }
  build_output(model, tables.output);
}

}  // namespace pyserve
