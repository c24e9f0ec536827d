#include "native_output.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

namespace pyserve {
namespace {

constexpr int64_t SIGMOID_TABLE_SIZE = 512;
constexpr int64_t MAX_SIGMOID = 8;
constexpr size_t FEW_LABELS = 64;  // up to here, no memory is asked for

using Candidate = std::pair<float, int32_t>;  // logarithm of a probability, label

bool is_better(const Candidate& left, const Candidate& right) { return left.first > right.first; }

float std_log(float x) { return static_cast<float>(std::log(static_cast<double>(x) + 1e-5)); }

// An array that is on the stack where it is small.
template <typename Item, size_t FEW>
class Buffer {
 public:
  explicit Buffer(size_t size) : data_(few_) {
    if (size > FEW) {
      many_.reset(new Item[size]);
      data_ = many_.get();
    }
  }
  Item* data() { return data_; }
  Item& operator[](size_t index) { return data_[index]; }

 private:
  alignas(64) Item few_[FEW];
  std::unique_ptr<Item[]> many_;
  Item* data_;
};

// The k best so far, as a heap whose front is the worst of them.
class Best {
 public:
  explicit Best(size_t k) : k_(k), heap_(k + 1) {}

  bool is_full() const { return size_ == k_; }
  float worst() { return heap_[0].first; }

  void push(float log_probability, int32_t label) {
    heap_[size_++] = {log_probability, label};
    std::push_heap(heap_.data(), heap_.data() + size_, is_better);
    if (size_ > k_) {
      std::pop_heap(heap_.data(), heap_.data() + size_, is_better);
      size_--;
    }
  }

  ptrdiff_t finish(Score* scores) {
    std::sort_heap(heap_.data(), heap_.data() + size_, is_better);
    for (size_t i = 0; i < size_; i++) {
      scores[i].label = heap_[i].second;
      scores[i].confidence = std::exp(heap_[i].first);
    }
    return static_cast<ptrdiff_t>(size_);
  }

 private:
  size_t k_;
  size_t size_ = 0;
  Buffer<Candidate, 16> heap_;
};

// Loss::Loss
std::vector<float> make_sigmoid() {
  std::vector<float> table;
  for (int i = 0; i < SIGMOID_TABLE_SIZE + 1; i++) {
    const float x = static_cast<float>(i * 2 * MAX_SIGMOID) / SIGMOID_TABLE_SIZE - MAX_SIGMOID;
    table.push_back(static_cast<float>(1.0 / (1.0 + std::exp(-x))));
  }
  return table;
}

float dot(const uint8_t* cells, const float* hidden, size_t dim) {
  float sum = 0.0F;
  for (size_t j = 0; j < dim; j++) {
    sum += load_unaligned<float>(cells + j * sizeof(float)) * hidden[j];
  }
  return sum;
}

// ProductQuantizer::mulcode
float dot_codes(const MatrixView& matrix, size_t row, const float* hidden) {
  const QuantizerView& quantizer = matrix.quantizer;
  const uint8_t* codes = matrix.codes + row * quantizer.nsubq;
  const uint8_t* part_start = quantizer.centroids;
  float sum = 0.0F;
  for (int32_t part = 0; part < quantizer.nsubq; part++) {
    const int32_t size = part == quantizer.nsubq - 1 ? quantizer.lastdsub : quantizer.dsub;
    const uint8_t* source = part_start + static_cast<size_t>(codes[part]) * size * sizeof(float);
    for (int32_t j = 0; j < size; j++) {
      sum += hidden[static_cast<size_t>(part) * quantizer.dsub + j] * load_unaligned<float>(source + j * sizeof(float));
    }
    part_start += static_cast<size_t>(256) * quantizer.dsub * sizeof(float);
  }
  return sum;
}

// SoftmaxLoss::computeOutput
void normalise(float* output, size_t size) {
  float max = output[0];
  float sum = 0.0F;
  for (size_t i = 0; i < size; i++) {
    max = std::max(output[i], max);
  }
  for (size_t i = 0; i < size; i++) {
    output[i] = static_cast<float>(std::exp(static_cast<double>(output[i] - max)));
    sum += output[i];
  }
  for (size_t i = 0; i < size; i++) {
    output[i] /= sum;
  }
}

// Loss::sigmoid. A score that is not a number was refused before, also where fastText answers "nan" to it.
float sigmoid(const std::vector<float>& table, float x) {
  if (x < -MAX_SIGMOID) {
    return 0.0F;
  }
  if (x > MAX_SIGMOID) {
    return 1.0F;
  }
  return table[static_cast<size_t>((x + MAX_SIGMOID) * SIGMOID_TABLE_SIZE / MAX_SIGMOID / 2)];
}

// The one best label, without the logarithms of those that cannot be it: the logarithm grows with its argument, and where the
// arguments differ by more than a hundredth, so do the logarithms after rounding. Of equals the last one wins, as in the heap.
ptrdiff_t find_best(const float* output, size_t size, float threshold, Score* scores) {
  ptrdiff_t best = -1;
  float best_log = 0.0F;
  float clearly_less = 0.0F;
  for (size_t i = 0; i < size; i++) {
    if (output[i] < threshold || (best >= 0 && output[i] < clearly_less)) {
      continue;
    }
    const float log_probability = std_log(output[i]);
    if (best >= 0 && log_probability < best_log) {
      continue;
    }
    best = static_cast<ptrdiff_t>(i);
    best_log = log_probability;
    clearly_less = (output[i] + 1e-5F) * 0.99F - 1e-5F;
  }
  if (best < 0) {
    return 0;
  }
  scores[0].label = best;
  scores[0].confidence = std::exp(best_log);
  return 1;
}

}  // namespace

OutputStage::OutputStage(const ModelFile& model, const OutputLayer& layer) : loss_(model.args.loss), layer_(&layer) {
  if (loss_ == LossName::hs) {
    tree_ = make_huffman_tree(model.labels);
  } else if (loss_ != LossName::softmax) {
    sigmoid_ = make_sigmoid();
  }
}

float OutputStage::dot_row(const float* hidden, size_t row) const {
  const MatrixView& matrix = layer_->matrix;
  if (!matrix.quantized) {
    return dot(matrix.cells + row * matrix.columns * sizeof(float), hidden, static_cast<size_t>(matrix.columns));
  }
  const float sum = dot_codes(matrix, row, hidden);
  return layer_->norms ? sum * layer_->norms[row] : sum;
}

bool OutputStage::fill_probabilities(const Kernel& kernel, const float* hidden, float* output) const {
  const size_t labels = layer_->labels;
  if (layer_->transposed) {
    kernel.compute_scores(*layer_, hidden, output);
  } else {
    for (size_t label = 0; label < labels; label++) {
      output[label] = dot_row(hidden, label);
    }
  }
  bool is_number = true;
  for (size_t label = 0; label < labels; label++) {
    is_number &= !std::isnan(output[label]);
  }
  if (!is_number) {
    return false;
  }
  if (loss_ == LossName::softmax) {
    normalise(output, labels);
    return !std::isnan(output[0]);  // all of them are, where a score is infinite
  }
  for (size_t label = 0; label < labels; label++) {
    output[label] = sigmoid(sigmoid_, output[label]);
  }
  return true;
}

ptrdiff_t OutputStage::predict_flat(
    const Kernel& kernel, const float* hidden, int32_t k, float threshold, Score* scores) const {
  const size_t labels = layer_->labels;
  Buffer<float, FEW_LABELS> output(layer_->padded_labels);
  if (!fill_probabilities(kernel, hidden, output.data())) {
    return -1;
  }
  if (k == 1) {
    return find_best(output.data(), labels, threshold, scores);
  }
  Best best(std::min(static_cast<size_t>(k), labels));
  for (size_t i = 0; i < labels; i++) {
    if (output[i] < threshold) {
      continue;
    }
    const float log_probability = std_log(output[i]);
    if (!best.is_full() || !(log_probability < best.worst())) {
      best.push(log_probability, static_cast<int32_t>(i));
    }
  }
  return best.finish(scores);
}

// HierarchicalSoftmaxLoss::dfs, with a stack of its own: the tree of a hostile file may be as deep as it has labels.
ptrdiff_t OutputStage::predict_tree(const float* hidden, int32_t k, float threshold, Score* scores) const {
  const auto leaves = static_cast<int32_t>(layer_->labels);
  const float least = std_log(threshold);
  Best best(std::min(static_cast<size_t>(k), static_cast<size_t>(leaves)));
  std::vector<Candidate> open{{0.0F, 2 * leaves - 2}};
  while (!open.empty()) {
    const auto [score, node] = open.back();
    open.pop_back();
    if (score < least || (best.is_full() && score < best.worst())) {
      continue;
    }
    if (node < leaves) {
      best.push(score, node);
      continue;
    }
    float f = dot_row(hidden, static_cast<size_t>(node - leaves));
    if (std::isnan(f)) {
      return -1;
    }
    f = static_cast<float>(1. / (1 + std::exp(-f)));
    open.emplace_back(score + std_log(f), tree_.nodes[node].right);
    open.emplace_back(score + std_log(static_cast<float>(1.0 - f)), tree_.nodes[node].left);
  }
  return best.finish(scores);
}

ptrdiff_t OutputStage::predict(
    const Kernel& kernel, const float* hidden, int32_t k, float threshold, Score* scores) const {
  return loss_ == LossName::hs ? predict_tree(hidden, k, threshold, scores)
                               : predict_flat(kernel, hidden, k, threshold, scores);
}

}  // namespace pyserve
