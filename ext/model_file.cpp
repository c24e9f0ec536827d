#include "model_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>
#include <string>
#include <system_error>
#include <unordered_set>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "fastText model files are little endian, and this reader does not swap bytes"
#endif

namespace pyserve {
namespace {

constexpr int32_t MAGIC = 793712314;
constexpr int32_t OLDEST_VERSION = 11;
constexpr int32_t NEWEST_VERSION = 12;
constexpr int32_t SUPERVISED = 3;
constexpr int64_t CENTROIDS = 256;
constexpr int32_t INT32_LIMIT = std::numeric_limits<int32_t>::max();
constexpr int64_t INT64_LIMIT = std::numeric_limits<int64_t>::max();
// Orders far beyond use; above them one line of text would cost time with its length squared.
constexpr int32_t MAX_WORD_NGRAMS = 100;
constexpr int32_t MAX_SUBWORD_LENGTH = 1000;
constexpr int32_t MAX_DIM = 1 << 20;
// An entry of the dictionary: at least one byte of text, a NUL, a count and a type.
constexpr size_t MIN_ENTRY_SIZE = 1 + 1 + sizeof(int64_t) + sizeof(int8_t);
// fastText builds its Huffman tree with this as "no such node yet": HierarchicalSoftmaxLoss::buildTree.
constexpr int64_t HUFFMAN_INFINITY = 1000000000000000;
// What fastText makes of a file while it loads it. Trained models stay far below: words have some ten bytes, and subwords of at
// most some ten characters; labels that were counted lie at a depth of some tens at most.
constexpr double MAX_SUBWORD_BYTES = 1e9;         // in all subwords of all words together
constexpr double MAX_SUBWORD_BYTES_PER_BYTE = 200;  // or so many for each byte of the words, in a large dictionary
constexpr uint64_t MAX_PATHS_LENGTH = 100000000;  // from the root of the tree to all labels, together

class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  size_t offset() const { return offset_; }
  size_t remaining() const { return size_ - offset_; }

  // A range of the file, which the reader then stands behind.
  const uint8_t* take(uint64_t length, const std::string& what) {
    if (length > remaining()) {
      throw FormatError(offset_, what + " takes " + std::to_string(length) + " bytes, but the file ends after " +
                                     std::to_string(remaining()));
    }
    const uint8_t* start = data_ + offset_;
    offset_ += length;
    return start;
  }

  template <typename Number>
  Number number(const char* what) {
    return load_unaligned<Number>(take(sizeof(Number), what));
  }

  // A number that must lie between two others, both allowed.
  template <typename Number>
  Number number(const char* what, Number least, Number most) {
    Number value = number<Number>(what);
    if (value < least || value > most) {
      reject<Number>(what, value, std::to_string(least) + " to " + std::to_string(most));
    }
    return value;
  }

  // A number of which only one value fits.
  template <typename Number>
  void expect(const char* what, Number wanted, const char* why) {
    Number value = number<Number>(what);
    if (value != wanted) {
      reject<Number>(what, value, std::to_string(wanted) + " (" + why + ")");
    }
  }

  bool flag(const char* what) { return number<uint8_t>(what, 0, 1) != 0; }

  // Complains about the number of type Number that was read last.
  template <typename Number, typename Value>
  [[noreturn]] void reject(const std::string& what, Value value, const std::string& allowed) const {
    throw FormatError(offset_ - sizeof(Number), what + " is " + std::to_string(value) + ", allowed is " + allowed);
  }

  // A text that ends in a NUL.
  std::string_view text(const char* what) {
    const auto* start = data_ + offset_;
    const auto* end = static_cast<const uint8_t*>(remaining() == 0 ? nullptr : std::memchr(start, 0, remaining()));
    if (end == nullptr) {
      throw FormatError(offset_, std::string(what) + " has no end: the file ends within the dictionary");
    }
    const size_t length = end - start;
    if (length == 0) {
      throw FormatError(offset_, std::string(what) + " is empty");
    }
    offset_ += length + 1;
    return {reinterpret_cast<const char*>(start), length};
  }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t offset_ = 0;
};

void read_signature(Reader& reader, ModelFile& model) {
  if (reader.number<int32_t>("the magic number") != MAGIC) {
    throw FormatError(0, "this is no fastText model: it does not begin with the magic number ba 16 4f 2f");
  }
  model.version = reader.number<int32_t>("the version", OLDEST_VERSION, NEWEST_VERSION);
}

void read_args(Reader& reader, ModelFile& model) {
  ModelArgs& args = model.args;
  args.dim = reader.number<int32_t>("dim", 1, MAX_DIM);
  args.ws = reader.number<int32_t>("ws", 0, INT32_LIMIT);
  args.epoch = reader.number<int32_t>("epoch", 0, INT32_LIMIT);
  args.min_count = reader.number<int32_t>("minCount", 0, INT32_LIMIT);
  args.neg = reader.number<int32_t>("neg", 0, INT32_LIMIT);
  args.word_ngrams = reader.number<int32_t>("wordNgrams", 0, MAX_WORD_NGRAMS);
  const auto loss = reader.number<int32_t>("loss");
  if (loss < static_cast<int32_t>(LossName::hs) || loss > static_cast<int32_t>(LossName::ova)) {
    reader.reject<int32_t>("loss", loss, "1 (hs), 2 (ns), 3 (softmax) or 4 (ova)");
  }
  args.loss = static_cast<LossName>(loss);
  const auto kind = reader.number<int32_t>("model");
  if (kind != SUPERVISED) {
    const char* given = kind == 1 ? " (cbow)" : kind == 2 ? " (skipgram)" : "";
    throw FormatError(reader.offset() - sizeof(int32_t), "model is " + std::to_string(kind) + given +
                                                             ", but only 3 (supervised) can classify a text");
  }
  args.bucket = reader.number<int32_t>("bucket", 0, INT32_LIMIT);
  const uint64_t bucket_offset = reader.offset() - sizeof(int32_t);
  args.minn = reader.number<int32_t>("minn", 0, MAX_SUBWORD_LENGTH);
  args.maxn = reader.number<int32_t>("maxn", 0, MAX_SUBWORD_LENGTH);
  if (model.version == 11) {
    args.maxn = 0;
  }
  if (args.bucket == 0 && args.word_ngrams > 1) {
    throw FormatError(bucket_offset, "bucket is 0, but wordNgrams is " + std::to_string(args.word_ngrams) +
                                         ": with word n-grams it must be at least 1");
  }
  if (args.bucket == 0 && args.maxn > 0 && args.minn <= args.maxn) {
    throw FormatError(bucket_offset, "bucket is 0, but maxn is " + std::to_string(args.maxn) +
                                         ": with subwords it must be at least 1");
  }
  args.lr_update_rate = reader.number<int32_t>("lrUpdateRate", 0, INT32_LIMIT);
  args.t = reader.number<double>("t");
  if (!std::isfinite(args.t) || args.t < 0) {
    reader.reject<double>("t", args.t, "a finite number of 0 or more");
  }
}

void read_entries(Reader& reader, int64_t number, int8_t type, const char* kind, std::vector<EntryView>& entries) {
  entries.reserve(number);
  for (int64_t i = 0; i < number; i++) {
    EntryView entry;
    entry.text = reader.text(kind);
    entry.count = reader.number<int64_t>("the count of a dictionary entry", 0, INT64_LIMIT);
    const auto found = reader.number<int8_t>("the type of a dictionary entry");
    if (found != type) {
      reader.reject<int8_t>("the type of a dictionary entry", found,
                            std::to_string(type) + " for this one (0 word, 1 label; words come first)");
    }
    entries.push_back(entry);
  }
}

// fastText makes and hashes the subwords of every word at load.
void check_subwords(const ModelFile& model, uint64_t offset) {
  double subwords = 0;
  double text = 0;
  for (const EntryView& word : model.words) {
    const auto size = static_cast<double>(word.text.size() + 2);  // with < and >
    const double longest = std::min(size, static_cast<double>(model.args.maxn));
    text += size;
    subwords += size * longest * longest / 2;
  }
  if (subwords > std::max(MAX_SUBWORD_BYTES, MAX_SUBWORD_BYTES_PER_BYTE * text)) {
    throw FormatError(offset, "the subwords of the dictionary may have " + std::to_string(static_cast<uint64_t>(subwords)) +
                                  " bytes (maxn is " + std::to_string(model.args.maxn) +
                                  "), allowed are 10^9, or 200 for every byte of its words");
  }
}

// fastText writes down the path to every label at load; where counts are 0, the tree can be a chain.
void check_paths(const std::vector<EntryView>& labels, uint64_t offset) {
  uint64_t length = labels.size() > MAX_PATHS_LENGTH ? labels.size() : 0;
  if (length == 0) {
    const HuffmanTree tree = make_huffman_tree(labels);
    std::vector<uint32_t> leaves(tree.nodes.size(), 1);
    for (size_t i = labels.size(); i < tree.nodes.size(); i++) {
      leaves[i] = leaves[tree.nodes[i].left] + leaves[tree.nodes[i].right];
      length += leaves[i];
    }
  }
  if (length > MAX_PATHS_LENGTH) {
    throw FormatError(offset, "the labels' counts make a tree whose paths have " + std::to_string(length) +
                                  " steps or more, allowed are " + std::to_string(MAX_PATHS_LENGTH));
  }
}

void check_labels(const std::vector<EntryView>& labels, LossName loss, uint64_t offset) {
  std::unordered_set<std::string_view> seen;
  seen.reserve(labels.size());
  int64_t total = 0;
  for (const EntryView& label : labels) {
    if (!seen.insert(label.text).second) {
      throw FormatError(offset, "two labels of the dictionary have the same name");
    }
    if (loss == LossName::hs && (label.count >= HUFFMAN_INFINITY || (total += label.count) >= HUFFMAN_INFINITY)) {
      throw FormatError(offset, "the labels' counts add up to 10^15 or more: no tree can be built from them");
    }
  }
}

// Set of numbers below a limit, to find one that comes twice. From calloc: pages that no number falls into are never made.
class Bitmap {
 public:
  explicit Bitmap(size_t bits) : words_(static_cast<uint64_t*>(std::calloc(bits / 64 + 1, sizeof(uint64_t)))) {
    if (words_ == nullptr) {
      throw std::bad_alloc();
    }
  }
  bool insert(size_t bit) {
    uint64_t& word = words_[bit / 64];
    const uint64_t mask = uint64_t{1} << (bit % 64);
    const bool fresh = (word & mask) == 0;
    word |= mask;
    return fresh;
  }

 private:
  struct Free {
    void operator()(uint64_t* words) const { std::free(words); }
  };
  std::unique_ptr<uint64_t[], Free> words_;
};

void read_pruned_index(Reader& reader, ModelFile& model) {
  if (model.pruneidx_size <= 0) {
    return;
  }
  const uint64_t offset = reader.offset();
  model.pruneidx = reader.take(static_cast<uint64_t>(model.pruneidx_size) * 8, "the index of kept n-grams");
  Bitmap ids(model.args.bucket);
  Bitmap rows(model.pruneidx_size);
  for (int64_t i = 0; i < model.pruneidx_size; i++) {
    const auto id = load_unaligned<int32_t>(model.pruneidx + 8 * i);
    const auto row = load_unaligned<int32_t>(model.pruneidx + 8 * i + 4);
    if (id < 0 || id >= model.args.bucket) {
      throw FormatError(offset + 8 * i, "the id of a kept n-gram is " + std::to_string(id) + ", allowed is 0 to " +
                                            std::to_string(model.args.bucket - 1) + " (bucket - 1)");
    }
    if (row < 0 || row >= model.pruneidx_size) {
      throw FormatError(offset + 8 * i + 4, "the row of a kept n-gram is " + std::to_string(row) + ", allowed is 0 to " +
                                                std::to_string(model.pruneidx_size - 1));
    }
    if (!ids.insert(id)) {
      throw FormatError(offset + 8 * i, "the kept n-gram " + std::to_string(id) + " comes twice");
    }
    if (!rows.insert(row)) {
      throw FormatError(offset + 8 * i + 4, "the row " + std::to_string(row) + " belongs to two kept n-grams");
    }
  }
}

void read_dictionary(Reader& reader, ModelFile& model) {
  const uint64_t start = reader.offset();
  const auto size = reader.number<int32_t>("the size of the dictionary", 1, INT32_LIMIT);
  const auto nwords = reader.number<int32_t>("the number of words", 0, size);
  const auto nlabels = reader.number<int32_t>("the number of labels", 1, size);
  if (int64_t{nwords} + nlabels != size) {
    throw FormatError(start, "the size of the dictionary is " + std::to_string(size) + ", but it says to have " +
                                 std::to_string(nwords) + " words and " + std::to_string(nlabels) + " labels");
  }
  model.ntokens = reader.number<int64_t>("the number of tokens", 0, INT64_LIMIT);
  model.pruneidx_size = reader.number<int64_t>("the number of kept n-grams", -1, model.args.bucket);
  if (static_cast<uint64_t>(size) > reader.remaining() / MIN_ENTRY_SIZE) {
    throw FormatError(start, "the size of the dictionary is " + std::to_string(size) + ", but only " +
                                 std::to_string(reader.remaining()) + " bytes follow");
  }
  const uint64_t words_start = reader.offset();
  read_entries(reader, nwords, 0, "a word of the dictionary", model.words);
  check_subwords(model, words_start);
  const uint64_t labels_start = reader.offset();
  read_entries(reader, nlabels, 1, "a label of the dictionary", model.labels);
  check_labels(model.labels, model.args.loss, labels_start);
  if (model.args.loss == LossName::hs) {
    check_paths(model.labels, labels_start);
  }
  read_pruned_index(reader, model);
}

QuantizerView read_quantizer(Reader& reader, int64_t dim, bool of_norms) {
  QuantizerView quantizer;
  reader.expect<int32_t>("the dimension of a quantizer", static_cast<int32_t>(dim),
                         of_norms ? "a norm is one number" : "as the matrix");
  quantizer.dim = static_cast<int32_t>(dim);
  quantizer.nsubq = reader.number<int32_t>("the number of a quantizer's parts", 1, quantizer.dim);
  const uint64_t nsubq_offset = reader.offset() - sizeof(int32_t);
  quantizer.dsub = reader.number<int32_t>("the size of a quantizer's parts", 1, of_norms ? 1 : INT32_LIMIT);
  const int32_t parts = (dim + quantizer.dsub - 1) / quantizer.dsub;
  if (quantizer.nsubq != parts) {
    throw FormatError(nsubq_offset, "the number of a quantizer's parts is " + std::to_string(quantizer.nsubq) +
                                        ", but " + std::to_string(dim) + " dimensions in parts of " +
                                        std::to_string(quantizer.dsub) + " make " + std::to_string(parts));
  }
  const int32_t rest = static_cast<int32_t>(dim % quantizer.dsub);
  quantizer.lastdsub = rest == 0 ? quantizer.dsub : rest;
  reader.expect<int32_t>("the size of a quantizer's last part", quantizer.lastdsub, "what the other parts leave");
  quantizer.centroids = reader.take(dim * CENTROIDS * sizeof(float), "the centroids of a quantizer");
  return quantizer;
}

// The two numbers that every matrix begins with.
void read_shape(Reader& reader, int64_t rows, const char* why_rows, int64_t columns, MatrixView& matrix) {
  reader.expect<int64_t>("the number of a matrix's rows", rows, why_rows);
  reader.expect<int64_t>("the number of a matrix's columns", columns, "dim");
  matrix.rows = rows;
  matrix.columns = columns;
}

MatrixView read_matrix(Reader& reader, bool quantized, int64_t rows, const char* why_rows, int64_t columns) {
  MatrixView matrix;
  matrix.quantized = quantized;
  if (!quantized) {
    read_shape(reader, rows, why_rows, columns, matrix);
    // Rows are below 2^32 and columns below 2^21: no overflow.
    matrix.cells = reader.take(static_cast<uint64_t>(rows) * columns * sizeof(float), "a matrix");
    return matrix;
  }
  matrix.qnorm = reader.flag("qnorm");
  read_shape(reader, rows, why_rows, columns, matrix);
  const auto codes_size = reader.number<int32_t>("the size of a matrix's codes", 0, INT32_LIMIT);
  const uint64_t codes_offset = reader.offset();
  matrix.codes = reader.take(codes_size, "the codes of a matrix");
  matrix.quantizer = read_quantizer(reader, columns, false);
  if (rows * matrix.quantizer.nsubq != codes_size) {
    throw FormatError(codes_offset - sizeof(int32_t), "the size of a matrix's codes is " + std::to_string(codes_size) +
                                                          ", but " + std::to_string(rows) + " rows of " +
                                                          std::to_string(matrix.quantizer.nsubq) + " codes make " +
                                                          std::to_string(rows * matrix.quantizer.nsubq));
  }
  if (matrix.qnorm) {
    matrix.norm_codes = reader.take(rows, "the norms of a matrix");
    matrix.norm_quantizer = read_quantizer(reader, 1, true);
  }
  return matrix;
}

void read_matrices(Reader& reader, ModelFile& model) {
  const bool quantized = reader.flag("the flag for a quantized model");
  if (!quantized && model.pruned()) {
    throw FormatError(reader.offset() - 1, "n-grams are pruned, but the model is not quantized: fastText refuses that too");
  }
  const auto nwords = static_cast<int64_t>(model.words.size());
  const int64_t rows = nwords + (model.pruned() ? model.pruneidx_size : model.args.bucket);
  if (rows > INT32_LIMIT) {
    throw FormatError(reader.offset(), "words and n-grams need " + std::to_string(rows) + " rows, allowed are " +
                                           std::to_string(INT32_LIMIT));
  }
  model.input = read_matrix(reader, quantized, rows, model.pruned() ? "words and kept n-grams" : "words and buckets",
                            model.args.dim);
  model.qout = reader.flag("qout");
  model.output = read_matrix(reader, quantized && model.qout, static_cast<int64_t>(model.labels.size()),
                             "one for every label", model.args.dim);
}

}  // namespace

// HierarchicalSoftmaxLoss::buildTree. The reader has seen to it that counts add up to less than "infinity".
HuffmanTree make_huffman_tree(const std::vector<EntryView>& labels) {
  const auto leaves = static_cast<int32_t>(labels.size());
  HuffmanTree tree;
  tree.nodes.resize(2 * static_cast<size_t>(leaves) - 1);
  std::vector<int64_t> counts(tree.nodes.size(), HUFFMAN_INFINITY);
  for (int32_t i = 0; i < leaves; i++) {
    counts[i] = labels[i].count;
  }
  int32_t leaf = leaves - 1;
  int32_t node = leaves;
  for (int32_t i = leaves; i < 2 * leaves - 1; i++) {
    int32_t smallest[2] = {0, 0};
    for (int32_t& taken : smallest) {
      taken = leaf >= 0 && counts[leaf] < counts[node] ? leaf-- : node++;
    }
    tree.nodes[i] = {smallest[0], smallest[1]};
    counts[i] = counts[smallest[0]] + counts[smallest[1]];
  }
  return tree;
}

ModelFile read_model(const uint8_t* data, size_t size) {
  Reader reader(data, size);
  ModelFile model;
  model.size = size;
  read_signature(reader, model);
  read_args(reader, model);
  read_dictionary(reader, model);
  read_matrices(reader, model);
  if (reader.remaining() != 0) {
    throw FormatError(reader.offset(), "the model ends here, but " + std::to_string(reader.remaining()) + " bytes follow");
  }
  return model;
}

MappedFile::MappedFile(const char* path) {
  const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO must not block
  if (descriptor < 0) {
    throw std::system_error(errno, std::generic_category());
  }
  struct stat status;
  if (fstat(descriptor, &status) != 0) {
    const int error = errno;
    close(descriptor);
    throw std::system_error(error, std::generic_category());
  }
  if (!S_ISREG(status.st_mode) || status.st_size == 0) {
    close(descriptor);
    throw FormatError(0, S_ISREG(status.st_mode) ? "the file is empty" : "this is no regular file");
  }
  size_ = static_cast<size_t>(status.st_size);
  void* start = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
  const int error = errno;
  close(descriptor);
  if (start == MAP_FAILED) {
    throw std::system_error(error, std::generic_category());
  }
  data_ = static_cast<const uint8_t*>(start);
}

void MappedFile::release_pages() const noexcept { madvise(const_cast<uint8_t*>(data_), size_, MADV_DONTNEED); }

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    munmap(const_cast<uint8_t*>(data_), size_);
  }
}

void describe_failure(OpenFailure* failure) noexcept {
  try {
    throw;
  } catch (const FormatError& error) {
    failure->kind = OpenFailure::format;
    failure->offset = error.offset();
    failure->reason = error.what();
  } catch (const std::system_error& error) {
    failure->kind = OpenFailure::system;
    failure->code = error.code().value();
  } catch (const std::length_error& error) {
    failure->kind = OpenFailure::unsupported;
    failure->reason = error.what();
  } catch (...) {  // only an allocation can fail otherwise
    failure->kind = OpenFailure::memory;
  }
}

std::unique_ptr<OpenModel> open_model(const char* path, OpenFailure* failure) noexcept {
  try {
    return std::make_unique<OpenModel>(path);
  } catch (...) {
    describe_failure(failure);
  }
  return nullptr;
}

}  // namespace pyserve
