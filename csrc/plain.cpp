#include "plain.h"

#include <array>

#include "seen.h"

namespace sparsekern {
namespace {

namespace py = pybind11;

class Questions {
 public:
  static const Questions& get() {
    static const Questions* const questions = new Questions;  // never freed: Python may be gone by then
    return *questions;
  }

  bool nobody_watches() const {
    if (!known_) return false;
    for (const py::object& question : questions_) {
      const auto answer = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(question.ptr()));
      if (!answer) throw py::error_already_set();
      if (PyObject_IsTrue(answer.ptr())) return false;
    }
    return integer(attribute(forward_ad_, level_)) < 0;
  }

 private:
  Questions() {
    const py::module_ c = py::module_::import("torch._C"), autograd = py::module_::import("torch.autograd");
    forward_ad_ = py::module_::import("torch.autograd.forward_ad");
    const py::object functorch = py::getattr(c, "_functorch", py::none());
    questions_ = {found(c, "_len_torch_dispatch_stack"), found(c, "_len_torch_function_stack"),
                  found(functorch, "peek_interpreter_stack"), found(c, "_get_tracing_state"),
                  found(c, "_is_any_autocast_enabled"), found(autograd, "_profiler_enabled")};
    found(forward_ad_, "_current_level");
  }
  py::object found(py::handle owner, const char* name) {
    known_ = known_ && py::hasattr(owner, name);
    return py::getattr(owner, name, py::none());
  }

  bool known_ = true;
  std::array<py::object, 6> questions_;  // each answers something true where somebody watches
  py::object forward_ad_;
  PyObject* level_ = PyUnicode_InternFromString("_current_level");
};

}  // namespace

bool is_plain() { return Questions::get().nobody_watches(); }

}  // namespace sparsekern
