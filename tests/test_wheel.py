"""The wheel and the sdist install and serve where there is no checkout."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.server import clean_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, check=False, capture_output=True, env=clean_environment() | environment, timeout=800
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return done.stdout.decode()


@pytest.fixture(scope="module")
def dist() -> Path:
    run("make", "wheel", cwd=ROOT)
    return ROOT / "dist"


def test_wheel_content(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert "manylinux" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].removesuffix(".libs") for name in names if ".dist-info/" not in name} == {"pyserve"}
    assert {"pyserve/py.typed", "pyserve/_inference.pyi", "pyserve/_inference.pxd"} <= set(names)
    assert not [name for name in names if name.endswith((".pyx", ".c", ".cpp", ".ftz"))]


def test_wheel_is_for_any_cpu() -> None:
    flags = (ROOT / "setup.py").read_text()
    assert '"-march' not in flags
    assert "-Ofast" not in flags


def test_sdist_content(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "pyproject.toml", "LICENSE", "ext/_inference.pyx", "pyserve/_inference.pxd"} <= names


@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_install_and_answer(dist: Path, pattern: str, star_model: Path, tmp_path: Path) -> None:
    (package,) = dist.glob(pattern)
    run(sys.executable, "-m", "venv", "environment", cwd=tmp_path)
    python = tmp_path / "environment" / "bin" / "python"
    constraints = str(ROOT / "constraints.txt")
    run(
        *(python, "-m", "pip", "install", "--quiet", package),
        cwd=tmp_path,
        PIP_CONSTRAINT=constraints,
        PIP_BUILD_CONSTRAINT=constraints,
    )
    script = f"""
import json, re, subprocess, sys, urllib.request
import pyserve
assert {str(ROOT)!r} not in pyserve.__file__, pyserve.__file__
command = [sys.executable, "-m", "pyserve", "serve", "--model", {str(star_model)!r}, "--port", "0"]
with subprocess.Popen(command, stderr=subprocess.PIPE) as server:
    try:
        port = re.search(rb"127\\.0\\.0\\.1:(\\d+)", server.stderr.readline())[1].decode()
        reply = urllib.request.urlopen(f"http://127.0.0.1:{{port}}/inferreview", b"text=great+love", timeout=10)
        print(reply.read().decode())
    finally:
        server.terminate()
    assert server.wait(10) == 0
"""
    assert run(python, "-c", script, cwd=tmp_path).startswith('{"5 star":0.')
    assert run(tmp_path / "environment" / "bin" / "pyserve", "--version", cwd=tmp_path).startswith("pyserve")
