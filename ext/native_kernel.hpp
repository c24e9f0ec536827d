// From a line to its hidden vector and its labels' scores. Included once for every instruction set, by native_kernel_*.cpp,
// which define:
//   KERNEL            the attributes of all functions here, such as __attribute__((target("avx2")))
//   KERNEL_NAMESPACE  a namespace of its own, so that no function is shared between instruction sets
// and before that, in that namespace:
//   uint64_t space_mask(const uint8_t* block)              one bit for each of 64 bytes, set where it is white space
//   uint32_t match_slots(const Bucket&, uint16_t)          the slots that hold a fingerprint, in a form of its own:
//   uint32_t first_slot(uint32_t matches)                  the first of them, anything below 15 where there is none
//   bool has_more(uint32_t matches)                        whether there are several
//   void hash_lanes(keys, sizes, tokens, hashes)           FNV-1a of HASH_LANES keys at once; may be left out
//
// The order of every floating point operation is fastText's; what runs side by side are different dimensions or labels. Loops
// over tokens have no branch that depends on whether a token is known: half of them are not, and a branch that is mispredicted
// costs more than the work it saves.

namespace pyserve {
namespace KERNEL_NAMESPACE {
namespace {

constexpr size_t CHUNK = 4096;     // bytes of a line that are worked on at a time
constexpr size_t MAX_TOKENS = CHUNK / 2 + 8;
constexpr size_t MAX_ROWS = 1024;  // n-grams that are looked up at a time
constexpr uint64_t EOS_KEY = 0x3e732f3c;            // "</s>"
constexpr uint64_t LABEL_KEY = 0x5f6c6562616c5f5f;  // "__label_"

typedef float Quad __attribute__((vector_size(16)));
typedef float Eight __attribute__((vector_size(32), aligned(4)));
typedef float Sixteen __attribute__((vector_size(64), aligned(4)));

// What a line has given so far.
struct Line {
  const Tables* tables;
  int32_t* hashes;          // of all tokens that take part in n-grams
  size_t hashes_number = 0;
  uint64_t rows_number = 0;
  float* hidden;
  bool ended = false;       // the token </s> was met
};

// Masks that keep the first n bytes of 16.
struct KeyMasks {
  uint64_t masks[WordEntry::KEY_SIZE + 1][2];
  constexpr KeyMasks() : masks() {
    for (size_t size = 0; size <= WordEntry::KEY_SIZE; size++) {
      for (size_t i = 0; i < WordEntry::KEY_SIZE; i++) {
        if (i < size) {
          masks[size][i / 8] |= uint64_t{0xff} << (8 * (i % 8));
        }
      }
    }
  }
};
constexpr KeyMasks KEY_MASKS;

// Writes where tokens begin and end, in turns. The text must end in white space within the blocks.
KERNEL size_t find_edges(const uint8_t* text, size_t blocks, uint16_t* edges) {
  size_t number = 0;
  uint64_t before = 1;  // the byte before the text counts as white space
  for (size_t block = 0; block < blocks; block++) {
    const uint64_t spaces = space_mask(text + 64 * block);
    uint64_t changes = spaces ^ (spaces << 1 | before);
    before = spaces >> 63;
    const auto base = static_cast<uint16_t>(64 * block);
    const auto count = static_cast<size_t>(__builtin_popcountll(changes));
    for (size_t i = 0; i < count; i += 8) {  // eight at a time, so that branches are few; what is too much is overwritten
      for (size_t j = 0; j < 8; j++) {
        edges[number + i + j] = static_cast<uint16_t>(base + __builtin_ctzll(changes | uint64_t{1} << 63));
        changes &= changes - 1;
      }
    }
    number += count;
  }
  return number;
}

// --- rows of the input matrix ---------------------------------------------------------------------------------------------

template <int NSUBQ>
KERNEL void add_packed_rows(const RowStore& store, const uint64_t* rows, size_t number, float* hidden) {
  constexpr int QUADS = (NSUBQ + 1) / 2;
  const float* centroids = store.centroids.data();
  const float* norms = store.norms.data();
  Quad sums[QUADS];
  std::memcpy(sums, hidden, sizeof(sums));
  for (size_t i = 0; i < number; i++) {
    const uint64_t row = rows[i];
    const float norm = NSUBQ == 8 ? 1.0F : norms[row >> 56];
    const Quad scale = {norm, norm, norm, norm};
    for (int quad = 0; quad < QUADS; quad++) {
      Quad part = {0, 0, 0, 0};
      const float* left = centroids + 2 * (256 * (2 * quad) + (row >> (16 * quad) & 255));
      if (2 * quad + 1 < NSUBQ) {
        const float* right = centroids + 2 * (256 * (2 * quad + 1) + (row >> (16 * quad + 8) & 255));
        part = Quad{left[0], left[1], right[0], right[1]};
      } else {
        part = Quad{left[0], left[1], 0, 0};
      }
      sums[quad] += scale * part;
    }
  }
  std::memcpy(hidden, sums, sizeof(sums));
}

KERNEL void add_quantized_rows(const RowStore& store, const uint64_t* rows, size_t number, float* hidden) {
  const QuantizerView& quantizer = store.matrix.quantizer;
  for (size_t i = 0; i < number; i++) {
    const float norm = store.matrix.qnorm ? store.norms[store.matrix.norm_codes[rows[i]]] : 1.0F;
    const uint8_t* codes = store.matrix.codes + rows[i] * quantizer.nsubq;
    const float* centroids = store.centroids.data();
    float* target = hidden;
    for (int32_t part = 0; part < quantizer.nsubq - 1; part++) {
      const float* source = centroids + static_cast<size_t>(codes[part]) * quantizer.dsub;
      for (int32_t j = 0; j < quantizer.dsub; j++) {
        target[j] += norm * source[j];
      }
      target += quantizer.dsub;
      centroids += static_cast<size_t>(256) * quantizer.dsub;
    }
    const float* source = centroids + static_cast<size_t>(codes[quantizer.nsubq - 1]) * quantizer.lastdsub;
    for (int32_t j = 0; j < quantizer.lastdsub; j++) {
      target[j] += norm * source[j];
    }
  }
}

// Columns are taken in groups that stay in registers over all rows.
template <int VECTORS>
KERNEL void add_dense_columns(const uint8_t* cells, size_t row_size, const uint64_t* rows, size_t number, float* hidden) {
  Sixteen sums[VECTORS];
  std::memcpy(sums, hidden, sizeof(sums));
  for (size_t i = 0; i < number; i++) {
    const uint8_t* row = cells + rows[i] * row_size;
    for (int vector = 0; vector < VECTORS; vector++) {
      Sixteen part;
      std::memcpy(&part, row + 64 * vector, 64);
      sums[vector] += part;
    }
  }
  std::memcpy(hidden, sums, sizeof(sums));
}

KERNEL void add_dense_rows(const RowStore& store, const uint64_t* rows, size_t number, float* hidden) {
  const size_t row_size = sizeof(float) * store.dim;
  const uint8_t* cells = store.matrix.cells;
  uint32_t column = 0;
  for (; column + 32 <= store.dim; column += 32) {
    add_dense_columns<2>(cells + sizeof(float) * column, row_size, rows, number, hidden + column);
  }
  for (; column + 16 <= store.dim; column += 16) {
    add_dense_columns<1>(cells + sizeof(float) * column, row_size, rows, number, hidden + column);
  }
  const uint32_t rest = store.dim - column;
  if (rest == 0) {
    return;
  }
  float sums[16];
  std::memcpy(sums, hidden + column, sizeof(sums));
  for (size_t i = 0; i < number; i++) {
    float part[16];
    std::memcpy(part, cells + rows[i] * row_size + sizeof(float) * column, sizeof(float) * rest);
    for (uint32_t j = 0; j < rest; j++) {
      sums[j] += part[j];
    }
  }
  std::memcpy(hidden + column, sums, sizeof(float) * rest);
}

KERNEL void add_rows(Line& line, const uint64_t* rows, size_t number) {
  const RowStore& store = line.tables->rows;
  line.rows_number += number;
  if (store.kind == RowKind::dense) {
    return add_dense_rows(store, rows, number, line.hidden);
  }
  if (store.kind == RowKind::quantized) {
    return add_quantized_rows(store, rows, number, line.hidden);
  }
  switch (store.matrix.quantizer.nsubq) {
    case 1: return add_packed_rows<1>(store, rows, number, line.hidden);
    case 2: return add_packed_rows<2>(store, rows, number, line.hidden);
    case 3: return add_packed_rows<3>(store, rows, number, line.hidden);
    case 4: return add_packed_rows<4>(store, rows, number, line.hidden);
    case 5: return add_packed_rows<5>(store, rows, number, line.hidden);
    case 6: return add_packed_rows<6>(store, rows, number, line.hidden);
    case 7: return add_packed_rows<7>(store, rows, number, line.hidden);
    default: return add_packed_rows<8>(store, rows, number, line.hidden);
  }
}

// --- n-grams --------------------------------------------------------------------------------------------------------------

// Finds the rows of n-gram ids, leaving out those that have none. Returns how many there are.
KERNEL size_t find_ngram_rows(const Tables& tables, const uint32_t* ids, size_t number, uint64_t* rows) {
  const uint64_t* ngrams = tables.rows.ngrams.data();
  if (tables.ngram_rows == NgramRows::none) {
    return 0;
  }
  if (tables.ngram_rows == NgramRows::all) {
    const auto words = static_cast<uint64_t>(tables.words_number);
    if (tables.rows.kind == RowKind::packed) {
      for (size_t i = 0; i < number; i++) {
        rows[i] = pack_row(tables.rows.matrix, words + ids[i]);
      }
      return number;
    }
    for (size_t i = 0; i < number; i++) {
      rows[i] = words + ids[i];
    }
    return number;
  }
  const NgramTable& table = tables.ngrams;
  const Bucket* buckets = table.buckets.data();
  uint32_t places[MAX_ROWS];
  size_t found = 0;
  for (size_t i = 0; i < number; i++) {
    const uint32_t mixed = mix_ngram(ids[i], table);
    const Bucket& bucket = buckets[ngram_bucket(mixed, table)];
    const uint32_t matches = match_slots(bucket, static_cast<uint16_t>(mixed));
    const uint32_t place = matches != 0 ? bucket.start + first_slot(matches) : 0;
    places[found] = place;
    __builtin_prefetch(&ngrams[place]);
    found += matches != 0;
  }
  for (size_t i = 0; i < found; i++) {
    rows[i] = ngrams[places[i]];
  }
  return found;
}

KERNEL void add_ngrams(Line& line, const uint32_t* ids, size_t number) {
  uint64_t rows[MAX_ROWS];
  add_rows(line, rows, find_ngram_rows(*line.tables, ids, number, rows));
}

// Word n-grams of all orders up to that of the model: Dictionary::addWordNgrams.
KERNEL void add_word_ngrams(Line& line) {
  const Tables& tables = *line.tables;
  if (tables.word_ngrams < 2 || tables.ngram_rows == NgramRows::none || line.hashes_number < 2) {
    return;
  }
  uint32_t ids[MAX_ROWS];
  const int32_t* hashes = line.hashes;
  if (tables.word_ngrams == 2) {
    for (size_t start = 0; start + 1 < line.hashes_number; start += MAX_ROWS) {
      const size_t left = line.hashes_number - 1 - start;
      const size_t number = left < MAX_ROWS ? left : MAX_ROWS;
      for (size_t i = 0; i < number; i++) {
        const auto first = static_cast<uint64_t>(static_cast<int64_t>(hashes[start + i]));
        const auto second = static_cast<uint64_t>(static_cast<int64_t>(hashes[start + i + 1]));
        ids[i] = remainder_of(first * 116049371 + second, tables.bucket);
      }
      add_ngrams(line, ids, number);
    }
    return;
  }
  const auto order = static_cast<size_t>(tables.word_ngrams);
  size_t number = 0;
  for (size_t i = 0; i < line.hashes_number; i++) {
    auto hash = static_cast<uint64_t>(static_cast<int64_t>(hashes[i]));
    for (size_t j = i + 1; j < line.hashes_number && j < i + order; j++) {
      hash = hash * 116049371 + static_cast<uint64_t>(static_cast<int64_t>(hashes[j]));
      ids[number++] = remainder_of(hash, tables.bucket);
      if (number == MAX_ROWS) {
        add_ngrams(line, ids, number);
        number = 0;
      }
    }
  }
  add_ngrams(line, ids, number);
}

KERNEL inline bool starts_character(uint8_t byte) { return (byte & 0xc0) != 0x80; }

// The subwords of "<" token ">", where they begin and how long they are as in Dictionary::computeSubwords.
KERNEL void add_subwords(Line& line, const uint8_t* token, size_t size) {
  const Tables& tables = *line.tables;
  if (tables.ngram_rows == NgramRows::none) {
    return;
  }
  uint32_t ids[MAX_ROWS];
  size_t number = 0;
  const size_t length = size + 2;
  for (size_t i = 0; i < length; i++) {
    if (i > 0 && i <= size && !starts_character(token[i - 1])) {
      continue;
    }
    uint32_t hash = HASH_START;
    size_t j = i;
    for (int32_t n = 1; j < length && n <= tables.maxn; n++) {
      do {
        const uint8_t byte = j == 0 ? '<' : j <= size ? token[j - 1] : '>';
        hash = hash_byte(hash, byte);
        j++;
      } while (j <= size && !starts_character(token[j - 1]));
      if (n >= tables.minn && !(n == 1 && (i == 0 || j == length))) {
        ids[number++] = remainder_of(hash, tables.bucket);
        if (number == MAX_ROWS) {
          add_ngrams(line, ids, number);
          number = 0;
        }
      }
    }
  }
  add_ngrams(line, ids, number);
}

// --- words ----------------------------------------------------------------------------------------------------------------

// The first 16 bytes of a token, NULs behind its end. Reads 16 bytes in any case.
KERNEL inline Key load_key(const uint8_t* token, size_t size) {
  const uint64_t* masks = KEY_MASKS.masks[size];
  return {load_unaligned<uint64_t>(token) & masks[0], load_unaligned<uint64_t>(token + 8) & masks[1]};
}

KERNEL inline bool is_entry(const WordEntry& entry, Key key) {
  return ((load_unaligned<uint64_t>(entry.key) ^ key.low) | (load_unaligned<uint64_t>(entry.key + 8) ^ key.high)) == 0;
}

// Looks for a key among all entries whose fingerprint fits. Needed where there are several, which is rare.
KERNEL __attribute__((noinline)) uint32_t search_bucket(const WordTable& table, const Bucket& bucket, Key key) {
  for (uint32_t slot = 0; slot < Bucket::SLOTS && bucket.fingerprints[slot] != 0; slot++) {
    if (is_entry(table.entries[bucket.start + slot], key)) {
      return bucket.start + slot;
    }
  }
  return 0;
}

// The entry of a key if it has one, else some other entry.
KERNEL inline const WordEntry& find_candidate(const WordTable& table, Key key) {
  const uint64_t hash = hash_key(key.low, key.high, table.seed);
  const Bucket& bucket = table.buckets[word_bucket(hash, table.buckets_number)];
  const uint32_t matches = match_slots(bucket, word_fingerprint(hash));
  if (__builtin_expect(has_more(matches), 0)) {
    return table.entries[search_bucket(table, bucket, key)];
  }
  return table.entries[matches != 0 ? bucket.start + first_slot(matches) : 0];
}

KERNEL bool is_label_prefix(const uint8_t* token, size_t size) { return size >= 9 && std::memcmp(token, "__label__", 9) == 0; }

enum class Token { word, unknown, skipped };

// What a token is, for those that do not take the short way: long ones, and all where subwords are in use.
struct Resolved {
  Token kind;
  int32_t hash;
  uint64_t row;
};

KERNEL __attribute__((noinline)) Resolved resolve(const Tables& tables, const uint8_t* token, size_t size) {
  int32_t hash = 0;
  if (size <= WordEntry::KEY_SIZE) {
    uint8_t padded[WordEntry::KEY_SIZE] = {};
    std::memcpy(padded, token, size);
    const Key key = load_key(padded, size);
    const WordEntry& entry = find_candidate(tables.words, key);
    if (is_entry(entry, key)) {
      return {entry.is_label ? Token::skipped : Token::word, entry.hash, entry.row};
    }
    hash = static_cast<int32_t>(hash_bytes(HASH_START, token, size));
  } else {
    const LongWordTable& table = tables.long_words;
    const uint32_t found = hash_bytes(HASH_START, token, size);
    hash = static_cast<int32_t>(found);
    for (uint32_t place = found & table.mask; table.entries[place].size != 0; place = (place + 1) & table.mask) {
      const LongWordTable::Entry& entry = table.entries[place];
      if (entry.hash == hash && entry.size == size && std::memcmp(entry.text, token, size) == 0) {
        return {entry.is_label ? Token::skipped : Token::word, hash, entry.row};
      }
    }
  }
  return {is_label_prefix(token, size) ? Token::skipped : Token::unknown, hash, 0};
}

KERNEL inline bool is_eos(const uint8_t* token, size_t size) { return size == 4 && std::memcmp(token, "</s>", 4) == 0; }

// One token after the other, in fastText's order: where subwords are in use, and for tokens that do not fit into a chunk.
KERNEL void add_token(Line& line, const uint8_t* token, size_t size) {
  const Tables& tables = *line.tables;
  const Resolved resolved = resolve(tables, token, size);
  const bool eos = is_eos(token, size);
  line.ended = eos;
  if (resolved.kind == Token::skipped) {
    return;
  }
  line.hashes[line.hashes_number++] = resolved.hash;
  if (resolved.kind == Token::word) {
    add_rows(line, &resolved.row, 1);
  }
  if (tables.maxn > 0 && !eos) {
    add_subwords(line, token, size);
  }
}

// FNV-1a of some of the keys. There is room for more behind the last token.
KERNEL void hash_unknown(const Key* keys, const uint8_t* sizes, uint16_t* tokens, size_t number, int32_t* hashes) {
#if defined(HASH_LANES)
  for (size_t i = 0; i < HASH_LANES; i++) {
    tokens[number + i] = tokens[number == 0 ? 0 : number - 1];
  }
  for (size_t i = 0; i < number; i += HASH_LANES) {
    hash_lanes(keys, sizes, tokens + i, hashes);
  }
#else
  for (size_t i = 0; i < number; i++) {
    const uint16_t token = tokens[i];
    hashes[token] = static_cast<int32_t>(hash_bytes(HASH_START, reinterpret_cast<const uint8_t*>(keys + token), sizes[token]));
  }
#endif
}

// What has to be done slowly, token by token.
KERNEL __attribute__((noinline)) void add_tokens(Line& line, const uint8_t* text, const uint16_t* edges, size_t tokens) {
  for (size_t i = 0; i < tokens && !line.ended; i++) {
    add_token(line, text + edges[2 * i], edges[2 * i + 1] - edges[2 * i]);
  }
}

// The tokens of a chunk where no subwords are in use; `ends` says that the last one is the </s> that ends the line. The text has
// 16 bytes behind its last token.
KERNEL void add_words(Line& line, const uint8_t* text, const uint16_t* edges, size_t tokens, bool ends) {
  const Tables& tables = *line.tables;
  const WordTable& table = tables.words;
  const Bucket* buckets = table.buckets.data();
  const WordEntry* entries = table.entries.data();
  const uint64_t buckets_number = table.buckets_number;
  const uint64_t seed[2] = {table.seed[0], table.seed[1]};
  Key keys[MAX_TOKENS];
  uint32_t buckets_of[MAX_TOKENS];
  uint32_t places[MAX_TOKENS];
  uint16_t fingerprints[MAX_TOKENS];
  uint8_t sizes[MAX_TOKENS];
  // Loop by loop over all tokens, so that many of them wait for memory at the same time.
  size_t eos_number = 0;
  bool is_rare = false;
  for (size_t i = 0; i < tokens; i++) {
    const size_t start = edges[2 * i];
    const size_t size = edges[2 * i + 1] - start;
    const size_t key_size = size <= WordEntry::KEY_SIZE ? size : 0;
    const Key key = load_key(text + start, key_size);
    const uint64_t hash = hash_key(key.low, key.high, seed);
    const auto bucket = static_cast<uint32_t>((hash >> 32) * buckets_number >> 32);
    __builtin_prefetch(buckets + bucket);
    keys[i] = key;
    sizes[i] = static_cast<uint8_t>(key_size);
    buckets_of[i] = bucket;
    fingerprints[i] = word_fingerprint(hash);
    eos_number += key.low == EOS_KEY;
    is_rare |= key.low == LABEL_KEY;
  }
  // What looks like a label, and </s> amid the line.
  if (__builtin_expect(is_rare | (eos_number != ends), 0)) {
    return add_tokens(line, text, edges, tokens);
  }
  for (size_t i = 0; i < tokens; i++) {
    const Bucket& bucket = buckets[buckets_of[i]];
    const uint32_t matches = match_slots(bucket, fingerprints[i]);
    uint32_t place = matches != 0 ? bucket.start + first_slot(matches) : 0;
    if (__builtin_expect(has_more(matches), 0)) {
      place = search_bucket(table, bucket, keys[i]);
    }
    places[i] = place;
    __builtin_prefetch(entries + place);
  }
  int32_t* hashes = line.hashes + line.hashes_number;
  uint64_t rows[MAX_TOKENS];
  uint16_t unknown[MAX_TOKENS + 16];
  unknown[0] = 0;
  size_t rows_number = 0;
  size_t unknown_number = 0;
  for (size_t i = 0; i < tokens; i++) {
    const Key key = keys[i];
    if (__builtin_expect(key.low == 0, 0)) {
      const Resolved resolved = resolve(tables, text + edges[2 * i], edges[2 * i + 1] - edges[2 * i]);
      hashes[i] = resolved.hash;
      rows[rows_number] = resolved.row;
      rows_number += resolved.kind == Token::word;
      is_rare |= resolved.kind == Token::skipped;
      continue;
    }
    const WordEntry& entry = entries[places[i]];
    const bool known = is_entry(entry, key);
    hashes[i] = entry.hash;
    rows[rows_number] = entry.row;
    rows_number += known;
    is_rare |= entry.is_label;  // of another entry, it only takes time
    unknown[unknown_number] = static_cast<uint16_t>(i);
    unknown_number += !known;
  }
  if (__builtin_expect(is_rare, 0)) {
    return add_tokens(line, text, edges, tokens);
  }
  hash_unknown(keys, sizes, unknown, unknown_number, hashes);
  line.hashes_number += tokens;
  line.ended = ends;
  add_rows(line, rows, rows_number);
}

KERNEL inline bool is_space(uint8_t byte) { return byte == ' ' || byte == 0 || static_cast<uint8_t>(byte - 9) < 5; }

// The length of the first part of a line that can be worked on as a chunk: it ends before white space, and is 0 where the first
// token is too long.
KERNEL size_t cut_chunk(const uint8_t* text) {
  size_t size = CHUNK;
  while (size > 0 && !is_space(text[size])) {
    size--;
  }
  return size;
}

// Sums up the rows of all words, then those of all word n-grams.
KERNEL void add_line(Line& line, const uint8_t* text, size_t size, bool with_eos) {
  alignas(64) uint8_t chunk[CHUNK + 192];
  uint16_t edges[2 * MAX_TOKENS + 8];
  while (!line.ended && (size > 0 || with_eos)) {
    size_t length = size;
    if (size > CHUNK) {
      length = cut_chunk(text);
      if (length == 0) {
        while (length < size && !is_space(text[length])) {
          length++;
        }
        if (length > 0) {
          add_token(line, text, length);
        } else {
          length = 1;  // white space
        }
        text += length;
        size -= length;
        continue;
      }
    }
    std::memcpy(chunk, text, length);
    text += length;
    size -= length;
    const bool ends = size == 0 && with_eos;
    if (ends) {
      std::memcpy(chunk + length, " </s>", 5);
      length += 5;
      with_eos = false;
    }
    std::memset(chunk + length, 0, 128);
    const size_t tokens = find_edges(chunk, length / 64 + 1, edges) / 2;
    if (line.tables->maxn > 0) {
      add_tokens(line, chunk, edges, tokens);
    } else {
      add_words(line, chunk, edges, tokens, ends);
    }
  }
  add_word_ngrams(line);
}

// The hidden vector of a line, padded to a multiple of 16, and the number of rows that it is the mean of.
KERNEL uint64_t compute_hidden(const Tables& tables, const uint8_t* text, size_t size, bool with_eos, int32_t* hashes, float* hidden) {
  Line line;
  line.tables = &tables;
  line.hashes = hashes;
  line.hidden = hidden;
  const uint32_t dim = tables.rows.dim;
  std::memset(hidden, 0, sizeof(float) * ((dim + 15) / 16 * 16));
  add_line(line, text, size, with_eos);
  const auto scale = static_cast<float>(1.0 / static_cast<double>(line.rows_number));
  for (uint32_t j = 0; j < dim; j++) {
    hidden[j] *= scale;
  }
  return line.rows_number;
}

// --- output ---------------------------------------------------------------------------------------------------------------

// The scores of some neighbouring labels at once.
template <typename Vector>
KERNEL inline void score_labels(const OutputLayer& output, const float* hidden, size_t label, float* scores) {
  const float* weights = output.transposed.data() + label;
  Vector sums = {};
  for (uint32_t j = 0; j < output.dim; j++) {
    Vector column;
    std::memcpy(&column, weights, sizeof(column));
    sums += column * hidden[j];
    weights += output.padded_labels;
  }
  if (output.norms) {
    Vector norms;
    std::memcpy(&norms, output.norms.data() + label, sizeof(norms));
    sums *= norms;
  }
  std::memcpy(scores + label, &sums, sizeof(sums));
}

KERNEL void compute_scores(const OutputLayer& output, const float* hidden, float* scores) {
  if (output.labels <= 4) {
    return score_labels<Quad>(output, hidden, 0, scores);
  }
  if (output.labels <= 8) {
    return score_labels<Eight>(output, hidden, 0, scores);
  }
  for (size_t label = 0; label < output.padded_labels; label += 16) {
    score_labels<Sixteen>(output, hidden, label, scores);
  }
}

}  // namespace
}  // namespace KERNEL_NAMESPACE
}  // namespace pyserve
