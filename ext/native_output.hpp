// From a hidden vector to the best labels: the losses of fastText's loss.cc, operation for operation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model_file.hpp"
#include "native_dispatch.hpp"

namespace pyserve {

// A label's number and its probability.
struct Score {
  ptrdiff_t label;
  float confidence;
};
static_assert(offsetof(Score, confidence) == sizeof(ptrdiff_t), "as in pyserve/_native.pxd");

class OutputStage {
 public:
  // Throws std::bad_alloc.
  OutputStage(const ModelFile& model, const OutputLayer& layer);

  // Writes the at most k best labels whose probability reaches the threshold, best first, and returns their number; -1 where a
  // score is not a number. `k` is at least 1; `scores` has room for k or for all labels, whatever is less. Throws
  // std::bad_alloc.
  ptrdiff_t predict(const Kernel& kernel, const float* hidden, int32_t k, float threshold, Score* scores) const;

  LossName loss() const { return loss_; }
  // The score of one label, or for hs of one inner node of the tree: Matrix::dotRow.
  float dot_row(const float* hidden, size_t row) const;

 private:
  ptrdiff_t predict_flat(const Kernel& kernel, const float* hidden, int32_t k, float threshold, Score* scores) const;
  ptrdiff_t predict_tree(const float* hidden, int32_t k, float threshold, Score* scores) const;
  bool fill_probabilities(const Kernel& kernel, const float* hidden, float* probabilities) const;

  LossName loss_;
  const OutputLayer* layer_;
  std::vector<float> sigmoid_;
  HuffmanTree tree_;
};

}  // namespace pyserve
