"""The extension modules and how they are compiled; all metadata is in pyproject.toml."""

import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

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


def extension(name: str, *sources: str) -> Extension:
    """Describe the module ``pyserve.<name>``, made of ``ext/<name>.pyx`` and C++ sources where it has any."""
    cplusplus = any(source.endswith(".cpp") for source in sources)
    return Extension(
        f"pyserve.{name}",
        [f"ext/{name}.pyx", *sources],
        depends=glob("pyserve/*.pxd") + glob("ext/*.h") + glob("ext/*.hpp"),
        include_dirs=["ext"],
        language="c++" if cplusplus else "c",
        extra_compile_args=COMPILE_ARGS + (["-std=c++17"] if cplusplus else []),
        extra_link_args=LINK_ARGS,
        define_macros=MACROS,
    )


setup(
    ext_modules=cythonize(
        [
            extension("_body"),
            extension("_connections"),
            extension("_gate"),
            extension("_inference"),
            extension("_metrics"),
            extension("_resource"),
            extension("_model_file", "ext/model_file.cpp"),
            extension("_native", "ext/model_file.cpp", *sorted(glob("ext/native_*.cpp"))),
        ],
        build_dir="build/cython-debug" if DEBUG else "build/cython",
        compiler_directives={"language_level": 3, "autotestdict": False, "auto_pickle": False, "linetrace": DEBUG},
    ),
)
