// What an answer rests on: the share of every token in a label's score.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "native_engine.hpp"

namespace pyserve {

struct TokenShare {
  std::string text;
  bool known;    // a word of the dictionary
  double share;  // of the score: of its word and its subwords, and an equal part of each n-gram that it belongs to
};

struct Explanation {
  double score = 0;  // of the label: the product of its weights and the mean of the rows; the sum of all shares
  std::vector<TokenShare> tokens;
  size_t ngrams = 0;        // word n-grams of the line
  size_t ngrams_found = 0;  // those that have a row
};

// Explains the score of a label for a line, as NativeEngine::predict reads it. Not for hierarchical softmax, where labels have no
// scores of their own. False where there is not enough memory.
bool explain(const NativeEngine& engine, const char* text, size_t size, size_t label, Explanation* explanation) noexcept;

}  // namespace pyserve
