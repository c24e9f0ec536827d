// The native engine as a pybind11 module, whose predict() can stand in for that of fastText's binding.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "native_engine.hpp"

namespace py = pybind11;

namespace {

std::unique_ptr<pyserve::NativeEngine> load(const std::string& path) {
  pyserve::OpenFailure failure;
  std::unique_ptr<pyserve::NativeEngine> engine(pyserve::open_engine(path.c_str(), nullptr, &failure));
  if (engine != nullptr) {
    return engine;
  }
  if (failure.kind == pyserve::OpenFailure::system) {
    errno = failure.code;
    PyErr_SetFromErrnoWithFilename(PyExc_OSError, path.c_str());
    throw py::error_already_set();
  }
  if (failure.kind == pyserve::OpenFailure::memory) {
    throw std::bad_alloc();
  }
  throw py::value_error(failure.reason);
}

py::str decode(std::string_view text, const char* on_unicode_error) {
  PyObject* decoded = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), on_unicode_error);
  if (decoded == nullptr) {
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::str>(decoded);
}

std::vector<std::pair<float, py::str>> predict(const pyserve::NativeEngine& engine, std::string_view text, int32_t k,
                                               float threshold, const char* on_unicode_error) {
  const std::vector<pyserve::EntryView>& labels = engine.model().labels;
  const size_t room = k < 0 ? labels.size() : std::min(static_cast<size_t>(k), labels.size());
  std::vector<pyserve::Score> scores(std::max<size_t>(room, 1));
  const ptrdiff_t number = engine.predict(text.data(), text.size(), k, threshold, scores.data());
  if (number == pyserve::BAD_K) {
    throw std::invalid_argument("k needs to be 1 or higher!");
  }
  if (number == pyserve::NOT_A_NUMBER) {
    throw std::runtime_error("Encountered NaN.");
  }
  if (number < 0) {
    throw std::bad_alloc();
  }
  std::vector<std::pair<float, py::str>> pairs;
  pairs.reserve(static_cast<size_t>(number));
  for (ptrdiff_t i = 0; i < number; i++) {
    pairs.emplace_back(scores[i].confidence, decode(labels[scores[i].label].text, on_unicode_error));
  }
  return pairs;
}

}  // namespace

PYBIND11_MODULE(_native_pybind, module) {
  module.doc() = "The native engine behind the interface of fastText's pybind11 binding.";
  py::class_<pyserve::NativeEngine>(module, "fasttext", "A model that answers as fasttext_pybind.fasttext does.")
      .def(py::init(&load), py::arg("path"))
      .def("predict", &predict, py::arg("text"), py::arg("k") = 1, py::arg("threshold") = 0.0F,
           py::arg("on_unicode_error") = "strict");
}
