// Answers lines from standard input, each behind its size as four bytes, with the engine that it was built with.
#include <cstdio>
#include <iostream>
#include <string>

#include "native_engine.hpp"

int main(int, char** arguments) {
  pyserve::OpenFailure failure;
  const pyserve::NativeEngine* engine = pyserve::open_engine(arguments[1], nullptr, &failure);
  if (engine == nullptr) {
    return 1;
  }
  uint32_t size = 0;
  while (std::cin.read(reinterpret_cast<char*>(&size), sizeof(size))) {
    std::string line(size, '\0');
    std::cin.read(line.data(), size);
    pyserve::Score best{};
    const auto number = engine->predict(line.data(), line.size(), 1, 0.0F, &best);
    std::printf("%td %td %a\n", number, best.label, best.confidence);
  }
  return 0;
}
