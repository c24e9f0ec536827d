// The kernel as it is built for one instruction set, and the choice among them.
#pragma once

#include "native_layout.hpp"

namespace pyserve {

struct Kernel {
  const char* name;
  // Computes the mean of a line's rows. `hashes` has room for one number for every token, `hidden` for the dimensions, rounded up
  // to a multiple of 16. `with_eos` adds the token </s> at the end. Returns the number of rows; with 0, `hidden` means nothing.
  uint64_t (*compute_hidden)(const Tables& tables, const uint8_t* text, size_t size, bool with_eos, int32_t* hashes, float* hidden);
  // Computes the scores of all labels, where the output layer is transposed.
  void (*compute_scores)(const OutputLayer& output, const float* hidden, float* scores);
};

// Null where the compiler or this processor cannot run it.
const Kernel* baseline_kernel();
const Kernel* avx2_kernel();
const Kernel* avx512_kernel();

// The kernel of a name ("baseline", "avx2", "avx512"), or for null the best one. Null where it cannot run here.
const Kernel* choose_kernel(const char* name);

}  // namespace pyserve
