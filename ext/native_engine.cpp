#include "native_engine.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <new>
#include <thread>
#include <vector>

namespace pyserve {
namespace {

constexpr size_t FEW_TOKENS = 1024;
constexpr size_t FEW_DIMENSIONS = 512;
constexpr size_t LINES_AT_ONCE = 16;  // that a thread takes of a batch
constexpr double WORK_PER_BYTE = 6;    // of finding tokens and rows, in cells
constexpr double WORK_PER_LABEL = 16;  // of turning a score into a probability, in cells
constexpr double BYTES_PER_TOKEN = 5;  // of most texts

}  // namespace

const Kernel* choose_kernel(const char* name) {
  for (const Kernel* kernel : {avx512_kernel(), avx2_kernel(), baseline_kernel()}) {
    if (kernel != nullptr && (name == nullptr || std::strcmp(name, kernel->name) == 0)) {
      return kernel;
    }
  }
  return nullptr;
}

NativeEngine::NativeEngine(const char* path, const Kernel& kernel) : open_(path), kernel_(&kernel) {
  build_tables(open_.model, tables_);
  output_ = std::make_unique<OutputStage>(open_.model, tables_.output);
  open_.file.release_pages();
}

ptrdiff_t NativeEngine::predict(const char* text, size_t size, int32_t k, float threshold, Score* scores) const noexcept {
  try {
    const auto* start = reinterpret_cast<const uint8_t*>(text);
    const void* line_feed = size == 0 ? nullptr : std::memchr(text, '\n', size);
    if (line_feed != nullptr) {
      size = static_cast<const uint8_t*>(line_feed) - start;
    }
    // A token and the white space behind it take two bytes; </s> is one more.
    const size_t most_tokens = size / 2 + 2;
    int32_t few_hashes[FEW_TOKENS];
    std::unique_ptr<int32_t[]> many_hashes(most_tokens > FEW_TOKENS ? new int32_t[most_tokens] : nullptr);
    const size_t dim = (tables_.rows.dim + 15) / 16 * 16;
    alignas(64) float few_dimensions[FEW_DIMENSIONS];
    std::unique_ptr<float[]> many_dimensions(dim > FEW_DIMENSIONS ? new float[dim] : nullptr);
    int32_t* hashes = many_hashes ? many_hashes.get() : few_hashes;
    float* hidden = many_dimensions ? many_dimensions.get() : few_dimensions;
    if (kernel_->compute_hidden(tables_, start, size, line_feed != nullptr, hashes, hidden) == 0) {
      return 0;
    }
    if (k == -1) {
      k = static_cast<int32_t>(tables_.output.labels);
    } else if (k <= 0) {
      return BAD_K;
    }
    const ptrdiff_t number = output_->predict(*kernel_, hidden, k, threshold, scores);
    return number < 0 ? NOT_A_NUMBER : number;
  } catch (const std::bad_alloc&) {
    return OUT_OF_MEMORY;
  }
}

size_t NativeEngine::work(size_t size, size_t lines) const noexcept {
  const ModelArgs& args = open_.model.args;
  const double rows_per_byte =
      std::max(args.word_ngrams, 1) / BYTES_PER_TOKEN + std::max(0, args.maxn - std::max(args.minn, 1) + 1);
  const double of_text = static_cast<double>(size) * (WORK_PER_BYTE + rows_per_byte * args.dim);
  // hs may look at fewer labels than it has, but that is known afterwards only.
  const double of_labels =
      static_cast<double>(lines) * static_cast<double>(open_.model.labels.size()) * (WORK_PER_LABEL + args.dim);
  return static_cast<size_t>(std::min(of_text + of_labels, 1e18));
}

void predict_many(const NativeEngine& engine, const LineView* lines, size_t number, int32_t k, float threshold, size_t threads,
                  Score* scores, ptrdiff_t* counts) noexcept {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    while (true) {
      const size_t start = next.fetch_add(LINES_AT_ONCE);
      const size_t end = std::min(start + LINES_AT_ONCE, number);
      if (start >= number) {
        return;
      }
      for (size_t i = start; i < end; i++) {
        counts[i] = engine.predict(lines[i].data, lines[i].size, k, threshold, scores + i * static_cast<size_t>(k));
      }
    }
  };
  std::vector<std::thread> others;
  const size_t useful = std::min(threads, (number + LINES_AT_ONCE - 1) / LINES_AT_ONCE);
  try {
    while (others.size() + 1 < useful) {
      others.emplace_back(work);
    }
  } catch (const std::exception&) {  // no more threads, or no memory for one: those that there are do the work
  }
  work();
  for (std::thread& other : others) {
    other.join();
  }
}

NativeEngine* open_engine(const char* path, const char* kernel_name, OpenFailure* failure) noexcept {
  const Kernel* kernel = choose_kernel(kernel_name);
  if (kernel == nullptr) {
    failure->kind = OpenFailure::unsupported;
    failure->reason = "this processor does not run that kernel";
    return nullptr;
  }
  try {
    return new NativeEngine(path, *kernel);
  } catch (...) {
    describe_failure(failure);
  }
  return nullptr;
}

}  // namespace pyserve
