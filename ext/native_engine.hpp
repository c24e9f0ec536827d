// The native engine: answers what fastText's FastText::predictLine answers, bit for bit, from a mapped model file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "model_file.hpp"
#include "native_dispatch.hpp"
#include "native_output.hpp"

namespace pyserve {

// What predict() returns instead of a number of labels.
enum NativeError : ptrdiff_t {
  BAD_K = -1,          // k is 0 or below -1
  NOT_A_NUMBER = -2,   // the matrices hold what is no number
  OUT_OF_MEMORY = -3,
};

// Holds no state of a call: any number of threads may use it at once.
class NativeEngine {
 public:
  // `kernel` names an instruction set, null takes the best. Throws FormatError, std::system_error, std::length_error (a model
  // that it does not take), std::bad_alloc.
  NativeEngine(const char* path, const Kernel& kernel);

  // Classifies what stands before the first line feed, if there is one, and the token </s> behind it; all of the text otherwise.
  // Writes at most k labels, best first; k is -1 for all of them. `scores` has room for k or for all labels, whatever is less.
  // Returns how many it wrote, or a NativeError.
  ptrdiff_t predict(const char* text, size_t size, int32_t k, float threshold, Score* scores) const noexcept;

  // About how many cells of matrices so many bytes of text, in so many lines, make predict() read.
  size_t work(size_t size, size_t lines) const noexcept;

  const ModelFile& model() const { return open_.model; }
  const Kernel& kernel() const { return *kernel_; }
  const Tables& tables() const { return tables_; }
  const OutputStage& output() const { return *output_; }

 private:
  OpenModel open_;
  const Kernel* kernel_;
  Tables tables_;
  std::unique_ptr<OutputStage> output_;
};

// A line to classify.
struct LineView {
  const char* data;
  size_t size;
};

// Classifies many lines, in some threads, of which the calling one is the first. `scores` has room for k, which is at least 1 and
// at most the number of labels, for every line; `counts` takes what predict() returns for it.
void predict_many(const NativeEngine& engine, const LineView* lines, size_t number, int32_t k, float threshold, size_t threads,
                  Score* scores, ptrdiff_t* counts) noexcept;

// Opens an engine for callers that cannot take C++ exceptions: null where it failed, and `failure` says why.
NativeEngine* open_engine(const char* path, const char* kernel, OpenFailure* failure) noexcept;

}  // namespace pyserve
