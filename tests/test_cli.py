"""The command line: what it prints, and how it fails."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import fasttext_pybind
import pytest

import pyserve
from pyserve import Classifier
from pyserve._inference import format_reply
from tests.server import run
from tests.support import train


def test_version() -> None:
    status, out, _ = run("--version")
    assert (status, out) == (0, f"pyserve, version {pyserve.__version__}\n")


@pytest.mark.parametrize("command", [[], ["serve"], ["predict"], ["verify"], ["fetch"]])
def test_help_names_every_option_and_its_variable(command: list[str]) -> None:
    status, out, _ = run(*command, "--help")
    assert status == 0
    options = [word.rstrip(",") for line in out.splitlines() for word in line.split()[:2] if word.startswith("--")]
    out = "".join(out.split())
    for option in set(options) - {"--help", "--version", "--list"}:
        assert f"PYSERVE_{option[2:].upper().replace('-', '_')}" in out, option


def test_predict(classifier: Classifier, star_model: Path) -> None:
    status, out, err = run("predict", "--model", str(star_model), "great love", "awful")
    expected = b"".join(format_reply(classifier.predict(text)) + b"\n" for text in ("great love", "awful"))
    assert (status, out, err) == (0, expected.decode(), "")


def test_predict_standard_input(classifier: Classifier, star_model: Path) -> None:
    texts = [b"great", b"", b"caf\xc3\xa9 \xff", b"</s> awful"]
    status, out, _ = run("predict", "--model", str(star_model), "-k", "2", "-", stdin=b"\n".join(texts))
    assert status == 0
    assert out.encode() == b"".join(format_reply(classifier.predict(text, k=2)) + b"\n" for text in texts)


def test_predict_options_by_environment(classifier: Classifier, star_model: Path) -> None:
    status, out, _ = run(
        *("predict", "great"),
        PYSERVE_MODEL=str(star_model),
        PYSERVE_K="5",
        PYSERVE_THRESHOLD="0.1",
        PYSERVE_LABEL_FORMAT="<{}>",
    )
    pairs = [(f"<{label.removesuffix(' star')}>", value) for label, value in classifier.predict("great", 5, 0.1)]
    assert (status, out.encode()) == (0, format_reply(pairs) + b"\n")


@pytest.fixture
def word_vectors(tmp_path: Path) -> Path:
    return train(
        tmp_path / "vectors.bin",
        {"a": "b c d", "e": "f g h"},
        model=fasttext_pybind.model_name.cbow,
        loss=fasttext_pybind.loss_name.ns,
    )


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["predict", "great"]])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("missing.ftz", "there is no model"),
        ("text.txt", "no fastText model"),
        ("vectors.bin", "model is 1 (cbow)"),
    ],
)
def test_model_cannot_be_served(word_vectors: Path, command: list[str], model: str, message: str) -> None:
    status, out, err = run(*command, "--model", str(word_vectors.parent / model).replace("text.txt", "vectors.txt"))
    assert (status, out) == (2, "")
    assert err.startswith("Error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--port", "70000"], "70000 is not in the range"),
        (["serve", "--max-body", "0"], "0 is not in the range"),
        (["serve", "--max-texts", "many"], "'many' is not a valid integer"),
        (["predict", "--threshold", "2", "a"], "2.0 is not in the range"),
        (["predict"], "Missing argument"),
        (["predict", "-k", "6", "a"], "from 1 to 5"),
        (["predict", "--label-format", "star", "a"], "must hold {} once"),
        (["serve", "--nonsense"], "No such option"),
        (["serve", "--max-body", "9" * 20], "is not in the range"),
        (["serve", "--max-texts", "9" * 20], "is not in the range"),
        (["serve", "--max-bodies", "9" * 20], "is not in the range"),
        (["serve", "--access-log", "9" * 20], "is not in the range"),
        (["serve", "--request-timeout", "nan"], "is not a number of seconds"),
        (["serve", "--keep-alive", "inf"], "is not in the range"),
        (["nonsense"], "No such command"),
    ],
)
def test_wrong_usage(star_model: Path, arguments: list[str], message: str) -> None:
    status, out, err = run(*arguments, PYSERVE_MODEL=str(star_model))
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_serve_port_in_use(star_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other_port = other.getsockname()[1]
        status, out, err = run("serve", "--model", str(star_model), "--port", str(other_port))
    assert (status, out) == (2, "")
    assert err == f"Error: cannot listen on 127.0.0.1:{other_port}: Address already in use\n"


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "a" * 70 + ".example"])
def test_serve_wrong_host(star_model: Path, host: str) -> None:
    status, _, err = run("serve", "--model", str(star_model), "--host", host, "--port", "0")
    assert status == 2
    assert err.startswith(f"Error: cannot listen on {host}")
    assert err.count("\n") == 1


def test_serve_unix_socket_impossible(star_model: Path, tmp_path: Path) -> None:
    status, _, err = run("serve", "--model", str(star_model), "--unix-socket", str(tmp_path / "no" / "socket"))
    assert status == 2
    assert err.startswith("Error: cannot listen on the Unix socket")
    assert err.count("\n") == 1


def test_serve_that_cannot_start_leaves_no_unix_socket(star_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        assert run("serve", "--model", str(star_model), "--unix-socket", str(path), "--admin-address", taken)[0] == 2
    assert not path.exists()


def test_serve_unix_socket_over_a_file(star_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("kept")
    status, _, err = run("serve", "--model", str(star_model), "--unix-socket", str(path))
    assert status == 2
    assert err == f"Error: cannot listen on the Unix socket {path}: the path is taken by something that is no socket\n"
    assert path.read_text() == "kept"


def test_serving_imports_no_numpy(star_model: Path) -> None:
    script = f"""
import sys
import pyserve.cli, pyserve.server, _bjoern
app = pyserve.create_app(pyserve.load_model({str(star_model)!r}))
print(sorted({{"numpy", "fasttext", "requests", "pooch"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, env=dict(os.environ))
    assert done.stdout == b"[]\n"


@pytest.mark.parametrize("engine", ["binding", "native", "auto"])
def test_predict_with_engine(classifier: Classifier, star_model: Path, engine: str) -> None:
    status, out, err = run("predict", "--engine", engine, "--model", str(star_model), "great love")
    assert (status, out.encode(), err) == (0, format_reply(classifier.predict("great love")) + b"\n", "")


def test_verify_against_binding(star_model: Path) -> None:
    texts = b"great\nawful </s> waste\n\ncaf\xc3\xa9 \xff\0x\n"
    status, out, err = run("verify", str(star_model), "--against-binding", "--texts", "-", stdin=texts)
    assert (status, err) == (0, "")
    assert "engines  agree" in out
    assert "on 4 texts" in out


def test_verify_against_binding_wrong_usage(star_model: Path, tmp_path: Path) -> None:
    status, _, err = run("verify", str(star_model), "--against-binding")
    assert (status, err.count("\n")) == (2, 1)
    assert "--texts" in err
    empty = tmp_path / "empty.txt"
    empty.touch()
    status, _, err = run("verify", str(star_model), "--against-binding", "--texts", str(empty))
    assert (status, err) == (1, "Error: there are no texts to compare on\n")
