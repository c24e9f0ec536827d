// Reader of fastText model files (.ftz and .bin): structure checked, nothing copied.
//
// The format is the one that fastText 0.9.x writes, little endian, without padding or alignment. Its source is fastText's own
// code: FastText::saveModel (fasttext.cc) calls FastText::signModel, Args::save (args.cc), Dictionary::save (dictionary.cc),
// then for the input and the output matrix a flag and DenseMatrix::save (densematrix.cc) or QuantMatrix::save (quantmatrix.cc),
// which calls ProductQuantizer::save (productquantizer.cc). FastText::loadModel reads the same and checks almost nothing.
//
//   int32 magic, int32 version
//   int32 dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, minn, maxn, lrUpdateRate; float64 t
//   int32 size, nwords, nlabels; int64 ntokens, pruneidx_size
//   size times: the word, a NUL, int64 count, int8 type (0 word, 1 label); all words come before all labels
//   pruneidx_size times (none where it is -1, "not pruned"): int32 n-gram id, int32 row behind the words' rows
//   uint8 quantized; the input matrix; uint8 qout; the output matrix
//   dense matrix: int64 rows, int64 columns, float32 for every cell
//   quantized matrix: uint8 qnorm; int64 rows, int64 columns; int32 size of the codes, the codes; a quantizer;
//                     with qnorm: one code for every row, a quantizer of dimension 1
//   quantizer: int32 dim, nsubq, dsub, lastdsub; dim * 256 float32
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace pyserve {

// What is wrong with a file, and at which byte.
class FormatError : public std::runtime_error {
 public:
  FormatError(uint64_t offset, const std::string& reason)
      : std::runtime_error("byte " + std::to_string(offset) + ": " + reason), offset_(offset) {}
  uint64_t offset() const { return offset_; }

 private:
  uint64_t offset_;
};

// Reads a little-endian number that may lie at any address.
template <typename Number>
inline Number load_unaligned(const uint8_t* address) {
  Number value;
  std::memcpy(&value, address, sizeof(Number));
  return value;
}

enum class LossName : int32_t { hs = 1, ns = 2, softmax = 3, ova = 4 };

struct ModelArgs {
  int32_t dim;
  int32_t ws;
  int32_t epoch;
  int32_t min_count;
  int32_t neg;
  int32_t word_ngrams;
  LossName loss;
  int32_t bucket;
  int32_t minn;
  int32_t maxn;  // as fastText uses it: 0 for files of version 11, whatever they hold
  int32_t lr_update_rate;
  double t;
};

// One entry of the dictionary; the text is in the file, followed by a NUL.
struct EntryView {
  std::string_view text;
  int64_t count;
};

// A product quantizer of `nsubq` parts with 256 centroids each; all parts but the last have `dsub` dimensions.
struct QuantizerView {
  int32_t dim = 0;
  int32_t nsubq = 0;
  int32_t dsub = 0;
  int32_t lastdsub = 0;
  const uint8_t* centroids = nullptr;  // float32, unaligned
};

struct MatrixView {
  bool quantized = false;
  int64_t rows = 0;
  int64_t columns = 0;
  const uint8_t* cells = nullptr;  // dense: float32, unaligned, row by row
  const uint8_t* codes = nullptr;  // quantized: `nsubq` codes for every row
  QuantizerView quantizer;
  bool qnorm = false;
  const uint8_t* norm_codes = nullptr;  // with qnorm: one code for every row
  QuantizerView norm_quantizer;
};

// The checked content of a model file. All views point into the bytes that read_model() was given, which must outlive them.
struct ModelFile {
  size_t size = 0;
  int32_t version = 0;
  ModelArgs args{};
  std::vector<EntryView> words;
  std::vector<EntryView> labels;
  int64_t ntokens = 0;
  int64_t pruneidx_size = -1;         // -1: not pruned; 0: no n-gram has a row
  const uint8_t* pruneidx = nullptr;  // pairs of int32, unaligned: n-gram id, row behind the words' rows
  bool qout = false;
  MatrixView input;
  MatrixView output;

  bool pruned() const { return pruneidx_size >= 0; }
};

// Checks a whole model file and describes it. Takes time proportional to the dictionary and the pruned index; the cells of
// matrices and their codes are not read. Throws FormatError, or std::bad_alloc.
ModelFile read_model(const uint8_t* data, size_t size);

// The tree of hierarchical softmax. Nodes below the number of labels are leaves.
struct HuffmanTree {
  struct Node {
    int32_t left = -1;
    int32_t right = -1;
  };
  std::vector<Node> nodes;
};

// Builds the tree that fastText builds from the labels' counts, which the reader has checked. Throws std::bad_alloc.
HuffmanTree make_huffman_tree(const std::vector<EntryView>& labels);

// A file mapped for reading. The mapping holds the file: replacing it by rename leaves this one as it was.
class MappedFile {
 public:
  // Throws std::system_error where the file cannot be opened or mapped, FormatError where it is not a regular file or empty.
  explicit MappedFile(const char* path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  // Gives pages that were read back to the system; they come again, from its cache, where they are needed.
  void release_pages() const noexcept;

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// A model file that is mapped and was found right.
struct OpenModel {
  explicit OpenModel(const char* path) : file(path), model(read_model(file.data(), file.size())) {}
  const MappedFile file;
  const ModelFile model;
};

// Why open_model() gave nothing.
struct OpenFailure {
  enum Kind { none, format, system, memory, unsupported };
  Kind kind = none;
  int code = 0;         // system: the errno
  uint64_t offset = 0;  // format: the byte
  std::string reason;   // format: what is wrong, the byte included; unsupported: why the native engine does not take it
};

// Describes the exception that is being handled.
void describe_failure(OpenFailure* failure) noexcept;

// Maps and checks a model file for callers that cannot take C++ exceptions: null where it failed, and `failure` says why.
std::unique_ptr<OpenModel> open_model(const char* path, OpenFailure* failure) noexcept;

}  // namespace pyserve
