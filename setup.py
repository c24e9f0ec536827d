"""The extension modules and how they are compiled; all metadata is in pyproject.toml."""

import os
from copy import copy
from glob import glob

import pybind11
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("PYSERVE_DEBUG") == "1"
SANITIZE = os.environ.get("PYSERVE_SANITIZE") == "1"

# -ffp-contract=off: confidences are compared bit by bit, so no multiply and add may be fused.
COMPILE_ARGS = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
LINK_ARGS: list[str] = []
MACROS: list[tuple[str, str | None]] = []
if DEBUG or SANITIZE:
    COMPILE_ARGS += ["-O1", "-g", "-fno-omit-frame-pointer"]
if SANITIZE:
    COMPILE_ARGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    LINK_ARGS += ["-fsanitize=address,undefined"]
if DEBUG:
    MACROS += [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")]
NATIVE_SOURCES = ["ext/model_file.cpp", *sorted(set(glob("ext/native_*.cpp")) - {"ext/native_pybind.cpp"})]


class BuildExtensions(build_ext):
    """Gives each extension objects of its own: some share sources, and are built at the same time."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension."""
        command = copy(self)
        command.build_temp = os.path.join(self.build_temp, ext.name)
        build_ext.build_extension(command, ext)


def extension(name: str, *sources: str) -> Extension:
    """Describe the module ``pyserve.<name>``, made of ``ext/<name>.pyx``, if there is one, and C++ sources."""
    cython = glob(f"ext/{name}.pyx")
    cplusplus = any(source.endswith(".cpp") for source in sources)
    return Extension(
        f"pyserve.{name}",
        [*cython, *sources],
        depends=glob("pyserve/*.pxd") + glob("ext/*.h") + glob("ext/*.hpp"),
        include_dirs=["ext", pybind11.get_include(), "/usr/include/libev"],  # where some systems keep ev.h
        language="c++" if cplusplus else "c",
        extra_compile_args=COMPILE_ARGS + (["-std=c++17"] if cplusplus else []),
        extra_link_args=LINK_ARGS,
        define_macros=MACROS,
    )


setup(
    cmdclass={"build_ext": BuildExtensions},
    ext_modules=cythonize(
        [
            extension("_body"),
            extension("_connections"),
            extension("_gate"),
            extension("_inference"),
            extension("_loop"),
            extension("_metrics"),
            extension("_resource"),
            extension("_model_file", "ext/model_file.cpp"),
            extension("_native", *NATIVE_SOURCES),
            extension("_native_pybind", "ext/native_pybind.cpp", *NATIVE_SOURCES),
        ],
        build_dir="build/cython-debug" if DEBUG else "build/cython",
        compiler_directives={"language_level": 3, "autotestdict": False, "auto_pickle": False, "linetrace": DEBUG},
    ),
)
