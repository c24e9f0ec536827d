#include "native_explain.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <optional>
#include <string_view>

namespace pyserve {
namespace {

constexpr std::string_view EOS = "</s>";
constexpr std::string_view SPACES(" \n\r\t\v\f\0", 7);

// Does plainly, one thing after the other and in double, what the kernels do fast.
class Explainer {
 public:
  Explainer(const NativeEngine& engine, size_t label, Explanation& explanation)
      : tables_(engine.tables()), explanation_(explanation), weights_(engine.model().args.dim) {
    std::vector<float> unit(weights_.size(), 0.0F);
    for (size_t j = 0; j < unit.size(); j++) {
      unit[j] = 1.0F;
      weights_[j] = engine.output().dot_row(unit.data(), label);
      unit[j] = 0.0F;
    }
  }

  void run(std::string_view line, bool with_eos) {
    read_tokens(line, with_eos);
    add_word_ngrams();
    for (TokenShare& token : explanation_.tokens) {
      token.share /= static_cast<double>(std::max<size_t>(rows_, 1));
      explanation_.score += token.share;
    }
  }

 private:
  void read_tokens(std::string_view line, bool with_eos) {
    while (true) {
      const size_t start = line.find_first_not_of(SPACES);
      if (start == std::string_view::npos) {
        break;
      }
      line.remove_prefix(start);
      const std::string_view token = line.substr(0, line.find_first_of(SPACES));
      line.remove_prefix(token.size());
      add_token(token);
      if (token == EOS) {
        return;
      }
    }
    if (with_eos) {
      add_token(EOS);
    }
  }

  void add_token(std::string_view token) {
    const uint32_t hash = hash_text(HASH_START, token);
    const std::optional<uint64_t> row = find_word(token, hash);
    if (is_label_) {
      return;
    }
    explanation_.tokens.push_back({std::string(token), row.has_value(), 0.0});
    hashes_.push_back(static_cast<int32_t>(hash));
    if (row) {
      explanation_.tokens.back().share += use_row(*row);
    }
    if (tables_.maxn > 0 && token != EOS) {
      add_subwords("<" + std::string(token) + ">");
    }
  }

  // Dictionary::computeSubwords
  void add_subwords(std::string_view word) {
    const auto goes_on = [&](size_t i) { return i < word.size() && (word[i] & 0xc0) == 0x80; };
    for (size_t i = 0; i < word.size(); i++) {
      size_t end = i;
      for (int32_t n = 1; !goes_on(i) && end < word.size() && n <= tables_.maxn; n++) {
        do {
          end++;
        } while (goes_on(end));
        if (n >= tables_.minn && !(n == 1 && (i == 0 || end == word.size()))) {
          const uint32_t hash = hash_text(HASH_START, word.substr(i, end - i));
          if (const auto row = find_ngram(remainder_of(hash, tables_.bucket))) {
            explanation_.tokens.back().share += use_row(*row);
          }
        }
      }
    }
  }

  // Dictionary::addWordNgrams
  void add_word_ngrams() {
    for (size_t i = 0; i < hashes_.size(); i++) {
      auto hash = static_cast<uint64_t>(static_cast<int64_t>(hashes_[i]));
      for (size_t j = i + 1; j < hashes_.size() && static_cast<int64_t>(j - i) < tables_.word_ngrams; j++) {
        hash = hash * 116049371 + static_cast<uint64_t>(static_cast<int64_t>(hashes_[j]));
        explanation_.ngrams++;
        const auto row = find_ngram(remainder_of(hash, tables_.bucket));
        if (!row) {
          continue;
        }
        explanation_.ngrams_found++;
        const double part = use_row(*row) / static_cast<double>(j - i + 1);
        for (size_t k = i; k <= j; k++) {
          explanation_.tokens[k].share += part;
        }
      }
    }
  }

  static uint32_t hash_text(uint32_t hash, std::string_view text) {
    return hash_bytes(hash, reinterpret_cast<const uint8_t*>(text.data()), text.size());
  }

  // The row of a word. Says in is_label_ whether it is a label, or looks like one.
  std::optional<uint64_t> find_word(std::string_view token, uint32_t hash) {
    is_label_ = false;
    if (token.size() <= WordEntry::KEY_SIZE) {
      uint8_t key[WordEntry::KEY_SIZE] = {};
      std::memcpy(key, token.data(), token.size());
      const uint64_t key_hash =
          hash_key(load_unaligned<uint64_t>(key), load_unaligned<uint64_t>(key + 8), tables_.words.seed);
      const Bucket& bucket = tables_.words.buckets[word_bucket(key_hash, tables_.words.buckets_number)];
      for (uint32_t slot = 0; slot < Bucket::SLOTS && bucket.fingerprints[slot] != 0; slot++) {
        const WordEntry& entry = tables_.words.entries[bucket.start + slot];
        if (std::memcmp(entry.key, key, sizeof(key)) == 0) {
          is_label_ = entry.is_label != 0;
          return entry.row;
        }
      }
    } else {
      const LongWordTable& table = tables_.long_words;
      for (uint32_t place = hash & table.mask; table.entries[place].size != 0; place = (place + 1) & table.mask) {
        const LongWordTable::Entry& entry = table.entries[place];
        if (token == std::string_view(reinterpret_cast<const char*>(entry.text), entry.size)) {
          is_label_ = entry.is_label;
          return entry.row;
        }
      }
    }
    is_label_ = token.substr(0, 9) == "__label__";
    return std::nullopt;
  }

  std::optional<uint64_t> find_ngram(uint32_t id) const {
    const AlignedArray<uint64_t>& rows = tables_.rows.ngrams;
    if (tables_.ngram_rows == NgramRows::none) {
      return std::nullopt;
    }
    if (tables_.ngram_rows == NgramRows::all) {
      const uint64_t row = static_cast<uint64_t>(tables_.words_number) + id;
      return tables_.rows.kind == RowKind::packed ? pack_row(tables_.rows.matrix, row) : row;
    }
    const uint32_t mixed = mix_ngram(id, tables_.ngrams);
    const Bucket& bucket = tables_.ngrams.buckets[ngram_bucket(mixed, tables_.ngrams)];
    for (uint32_t slot = 0; slot < Bucket::SLOTS; slot++) {
      if (bucket.fingerprints[slot] == static_cast<uint16_t>(mixed)) {
        return rows[bucket.start + slot];
      }
    }
    return std::nullopt;
  }

  // Counts a row, and multiplies it with the label's weights.
  double use_row(uint64_t row) {
    rows_++;
    const RowStore& store = tables_.rows;
    const QuantizerView& quantizer = store.matrix.quantizer;
    double product = 0;
    if (store.kind == RowKind::dense) {
      for (size_t j = 0; j < weights_.size(); j++) {
        const uint8_t* cell = store.matrix.cells + (row * weights_.size() + j) * sizeof(float);
        product += weights_[j] * load_unaligned<float>(cell);
      }
      return product;
    }
    const bool packed = store.kind == RowKind::packed;
    for (size_t j = 0; j < weights_.size(); j++) {
      const size_t part = j / quantizer.dsub;
      const size_t code = packed ? row >> (8 * part) & 255 : store.matrix.codes[row * quantizer.nsubq + part];
      const bool last = part + 1 == static_cast<size_t>(quantizer.nsubq);
      const size_t part_size = packed ? 2 : last ? quantizer.lastdsub : quantizer.dsub;
      product += weights_[j] * store.centroids[part * 256 * quantizer.dsub + code * part_size + j % quantizer.dsub];
    }
    const size_t norm = !store.matrix.qnorm ? 0 : packed ? row >> 56 : store.matrix.norm_codes[row];
    return product * store.norms[norm];
  }

  const Tables& tables_;
  Explanation& explanation_;
  std::vector<double> weights_;
  std::vector<int32_t> hashes_;
  size_t rows_ = 0;
  bool is_label_ = false;
};

}  // namespace

bool explain(const NativeEngine& engine, const char* text, size_t size, size_t label, Explanation* explanation) noexcept {
  try {
    const std::string_view line(text, size);
    const size_t end = line.find('\n');
    Explainer(engine, label, *explanation).run(line.substr(0, end), end != std::string_view::npos);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

}  // namespace pyserve
