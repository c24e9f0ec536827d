"""What load_model and `pyserve verify` refuse, and how a model is chosen."""

import faulthandler
import hashlib
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyserve.model
from pyserve import Classifier, ModelError, describe_model, load_model
from pyserve.comparison import compare_engines, make_probe
from pyserve.model import (
    find_model,
    hash_model,
    is_overwritten,
    rehearse_load,
    verify_model,
    write_model_sidecar,
)
from tests.server import PYSERVE, clean_environment, run
from tests.support import Client, Reply, deadline
from tests.trained_models import Recipe, train

HEADER_BYTES = 92  # magic, version, arguments and the sizes of the dictionary
TEXTS = ["great good love", "awful poor waste broken", "film plot ending", "unknown words only"]


@pytest.fixture(scope="module", params=["bin", "ftz"])
def small_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few kilobytes, quantized and not."""
    recipe = Recipe(labels=3, lines=400, args={"wordNgrams": 2, "bucket": 50})
    if request.param == "ftz":
        recipe = Recipe(labels=3, lines=400, args={"wordNgrams": 2, "bucket": 500}, quantize={"qnorm": True})
    return train(tmp_path_factory.mktemp("small") / f"small.{request.param}", recipe)


@pytest.fixture
def copy(small_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(small_model, tmp_path / small_model.name))


def answers(classifier: Classifier) -> list[list[tuple[str, float]]]:
    return classifier.predict_many(TEXTS, k=len(classifier.labels))


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every use of the binding fail."""

    class Binding:
        def fasttext(self) -> None:
            raise AssertionError("the binding has touched a damaged file")

    monkeypatch.setitem(sys.modules, "fasttext_pybind", Binding())


@pytest.mark.usefixtures("untouched")
def test_every_truncation_is_refused_before_the_binding(copy: Path) -> None:
    content = copy.read_bytes()
    for length in range(len(content) - 1, -1, -1):
        with copy.open("r+b") as file:
            file.truncate(length)
        with pytest.raises(ModelError, match=rf"^{copy.name} cannot be served: byte \d+: "):
            load_model(copy)


@pytest.mark.usefixtures("untouched")
def test_truncations_of_the_real_model_are_refused_before_the_binding(real_model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(real_model, tmp_path / "real.ftz"))
    size = copy.stat().st_size
    lengths = {0, 1, 4, 8, 56, 100, size - 1, size - 2, *random.Random(3).sample(range(size), 300)}
    for length in sorted(lengths, reverse=True):
        with copy.open("r+b") as file:
            file.truncate(length)
        with pytest.raises(ModelError, match=r"cannot be served: byte \d+: "):
            load_model(copy)


def test_damaged_header_is_refused_or_harmless_or_well_formed(copy: Path) -> None:
    content = bytearray(copy.read_bytes())
    expected = answers(load_model(copy))
    differing: set[int] = set()
    accepted = 0
    for offset in range(HEADER_BYTES):
        for value in {0, 1, 2, 127, 255, content[offset] ^ 1, content[offset] ^ 128} - {content[offset]}:
            damaged = bytearray(content)
            damaged[offset] = value
            copy.write_bytes(damaged)
            try:
                found = answers(load_model(copy))
            except ModelError:
                continue
            accepted += 1
            if found != expected:
                differing.add(offset // 4)
    assert accepted
    # What is left: another n-gram length (7), loss (8), number of buckets (10) or subword lengths (11, 12) makes
    # another well-formed model. Only a sidecar tells.
    assert differing <= {7, 8, 10, 11, 12}


@pytest.mark.usefixtures("small_model")
def test_sidecar_refuses_every_damaged_byte(copy: Path) -> None:
    write_model_sidecar(copy)
    content = bytearray(copy.read_bytes())
    chance = random.Random(5)
    for offset in [*range(HEADER_BYTES), *chance.sample(range(HEADER_BYTES, len(content)), 200)]:
        damaged = bytearray(content)
        damaged[offset] ^= 1 << chance.randrange(8)
        copy.write_bytes(damaged)
        with pytest.raises(ModelError):
            load_model(copy)
    copy.write_bytes(content)
    load_model(copy)


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (lambda d: d.update(sha256="0" * 64), 2, "the sha256 should be 0000"),
        (lambda d: d.update(size=7), 3, "the size should be 7, it is "),
        (lambda d: d["golden"][1]["labels"].update(__label__0=0.123), 6, "the confidence of __label__0 should be 0.12"),
        (lambda d: d["golden"][2].update(text="great"), 7, "the confidence of "),
        (lambda d: d["golden"][0]["labels"].update(other=0.5), 5, "the confidence of other should be 0.5"),
        (lambda d: d["golden"][0].update(labels={"__label__0": float("nan")}), 5, "should be nan"),
        (lambda d: d.update(sha256="abc"), 2, "sha256 must be 64 lower-case hexadecimal digits"),
        (lambda d: d.update(sha256=None), 2, "sha256 must be 64 lower-case hexadecimal digits"),
        (lambda d: d.pop("sha256"), 1, "sha256 must be 64 lower-case hexadecimal digits"),
        (lambda d: d.update(size="7"), 3, "size must be a number of bytes"),
        (lambda d: d.update(size=True), 3, "size must be a number of bytes"),
        (lambda d: d.update(golden={}), 4, "golden must be a list"),
        (lambda d: d["golden"].append("text"), 1, "a golden prediction must have a text"),
        (lambda d: d["golden"][0].update(labels={}), 5, "there should be no label, there are "),
        (lambda d: d["golden"][0].update(labels={"__label__0": "x"}), 5, "a golden prediction must have a text"),
        (lambda d: d["golden"][0].update(text=5), 5, "a golden prediction must have a text"),
        (lambda d: d["golden"][0].update(more=5), 5, "a golden prediction must have a text"),
        (lambda d: d.update(more=5), 11, "'more' is not known, known are sha256, size and golden"),
    ],
)
def test_sidecar_that_differs_or_is_none(
    copy: Path, change: Callable[[dict[str, Any]], object], line: int, message: str
) -> None:
    write_model_sidecar(copy)
    sidecar = copy.with_name(copy.name + ".json")
    fields = json.loads(sidecar.read_text())
    change(fields)
    rows = ",\n".join("    " + json.dumps(row) for row in fields.get("golden", []))
    lines = [f'  "{name}": {json.dumps(value)}' for name, value in fields.items() if name != "golden"]
    golden = f'  "golden": [\n{rows}\n  ]' if isinstance(fields["golden"], list) else '  "golden": {}'
    lines.insert(min(2, len(lines)), golden)
    sidecar.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    with pytest.raises(ModelError) as raised:
        load_model(copy)
    assert str(raised.value).startswith(f"{sidecar.name}, line {line}: ")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: it is not JSON"),
        (b"{\n\n'sha256': 5}", "line 3: it is not JSON"),
        (b"[]", "line 1: it must be an object"),
        (b'{\n"size": 5, "\xff": 3}', "line 2: it is not UTF-8"),
        (b"[" * 100_000, "is nested too deeply"),
        (b" " * (2 << 20), "larger than 1048576 bytes"),
    ],
)
def test_sidecar_that_is_not_one(copy: Path, content: bytes, message: str) -> None:
    copy.with_name(copy.name + ".json").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_model(copy)


@pytest.mark.parametrize(
    ("digits", "message"),
    [(400, "line 5: a confidence is too large"), (5000, "line 5: a number has too many digits")],
)
def test_sidecar_with_a_huge_number(copy: Path, digits: int, message: str) -> None:
    write_model_sidecar(copy)
    sidecar = copy.with_name(copy.name + ".json")
    sidecar.write_text(re.sub(r"0\.\d+", "9" * digits, sidecar.read_text(), count=1))
    with pytest.raises(ModelError, match=f"^{sidecar.name}, {message}$"):
        load_model(copy)
    status, out, err = run("predict", "--model", str(copy), "great")
    assert (status, out, err) == (2, "", f"Error: {sidecar.name}, {message}\n")


@pytest.fixture
def mute_model(tmp_path: Path) -> Path:
    """An intact model of cells that are no numbers: it has no answer."""
    path = tmp_path / "mute.bin"
    path.write_bytes(make_probe()[:-16] + struct.pack("<4f", *[float("nan")] * 4))
    return path


def test_model_without_answers(mute_model: Path) -> None:
    with pytest.raises(ModelError, match=r"^mute\.bin has no answer to a golden text: Encountered NaN\.$"):
        write_model_sidecar(mute_model, ["probe"])
    with pytest.raises(ModelError, match=r"^mute\.bin has no answer to a text: Encountered NaN\.$"):
        compare_engines(mute_model, [b"probe"])
    status, out, err = run("predict", "--model", str(mute_model), "probe")
    assert (status, out) == (2, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    fields = {"sha256": hash_model(mute_model), "size": mute_model.stat().st_size}
    golden = [{"text": "probe", "labels": {"__label__1": 1.0}}]
    mute_model.with_name("mute.bin.json").write_text(json.dumps({**fields, "golden": golden}))
    for engine in ("binding", "native"):
        with pytest.raises(ModelError, match=r"^mute\.bin\.json, line 1: the model has no answer: Encountered NaN\.$"):
            load_model(mute_model, engine=engine)


def test_sidecar_of_a_text_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "probe.bin"
    path.write_bytes(make_probe())
    assert load_model(path).predict("unknown") == []
    assert write_model_sidecar(path, ["unknown", "probe"]) == 2
    assert load_model(path).predict("unknown") == []


def test_sidecar_of_hostile_labels(hostile_model: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(hostile_model, tmp_path / "hostile.bin"))
    assert write_model_sidecar(path, ["alpha beta", "日本語 \ud800", 'a "quoted" text\n', "eta theta"]) == 4
    assert load_model(path).labels == load_model(hostile_model).labels


def test_verify_writes_and_checks(copy: Path) -> None:
    status, out, err = run("verify", str(copy))
    assert (status, err) == (0, "")
    assert hash_model(copy) in out
    assert "sidecar  none" in out
    assert run("verify", str(copy), "--write", "--golden", "great good", "--golden", "poor")[0] == 0
    status, out, _ = run("verify", str(copy))
    assert status == 0
    assert "agrees: sha256, size, 2 golden predictions" in out
    assert "2 golden predictions" in run("verify", str(copy), "--write")[1]  # the texts are kept
    assert '"text": "great good"' in copy.with_name(f"{copy.name}.json").read_text()
    with copy.open("ab") as file:
        file.write(b"x")
    status, out, err = run("verify", str(copy))
    assert (status, out) == (1, "")
    assert err.startswith(f"Error: {copy.name} cannot be served: byte ")
    assert err.count("\n") == 1


def test_verify_needs_no_memory_for_the_model(copy: Path, untouched: None) -> None:
    assert pyserve.model.verify_model(copy).golden is None


def test_name_that_is_not_utf8(copy: Path) -> None:
    path = copy.rename(Path(os.fsdecode(bytes(copy.parent) + b"/\xff.ftz")))
    status, out, err = run("verify", os.fsdecode(path), "--write")
    assert (status, err) == (0, "")
    assert out.startswith("\ufffd.ftz is an intact supervised fastText model\n")
    status, out, err = run("predict", "--model", os.fsdecode(path), "great")
    assert (status, err) == (0, "")
    assert out.startswith("{")
    classifier = load_model(path)
    assert describe_model(path, classifier)["name"] == "\ufffd.ftz"
    path.write_bytes(b"damaged")
    with pytest.raises(ModelError, match="ftz cannot be served: "):
        load_model(path)


def test_verify_says_which_line_of_the_sidecar_failed(copy: Path) -> None:
    write_model_sidecar(copy)
    sidecar = copy.with_name(copy.name + ".json")
    sidecar.write_text(sidecar.read_text().replace('"size": ', '"size": 1'))
    for command, expected in ((["verify", str(copy)], 1), (["predict", "--model", str(copy), "a"], 2)):
        status, out, err = run(*command)
        assert (status, out) == (expected, "")
        assert err.startswith(f"Error: {sidecar.name}, line 3: the size should be 1")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["missing.ftz"], 2, "there is no model file missing.ftz"),
        (["."], 1, "cannot be served"),
        (["--golden", "a", "missing.ftz"], 2, "--golden goes with --write"),
        ([], 2, "Missing argument"),
    ],
)
def test_verify_wrong_usage(arguments: list[str], status: int, message: str) -> None:
    found, out, err = run("verify", *arguments)
    assert (found, out) == (status, "")
    assert message in err
    assert "Traceback" not in err


def test_file_that_changes_while_it_is_loaded(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = pyserve.model.inspect

    def check_and_replace(path: Path) -> Any:
        info = check(path)
        other = copy.with_name("other")
        shutil.copy(copy, other)
        other.replace(copy)
        return info

    monkeypatch.setattr(pyserve.model, "inspect", check_and_replace)
    with pytest.raises(ModelError, match="changed while it was being loaded"):
        load_model(copy)


def test_hash_follows_the_file(copy: Path) -> None:
    first = hash_model(copy)
    assert hash_model(copy) == first
    with copy.open("ab") as file:
        file.write(b"more")
    assert hash_model(copy) != first


@pytest.fixture(params=["copied", "large"])
def any_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every file as one that is too large to be copied, or none."""
    if request.param == "large":
        monkeypatch.setattr(pyserve.model, "COPIED_BYTES", 0)


@pytest.mark.usefixtures("any_size")
def test_hash_is_not_misled_by_times_that_are_set_back(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyserve.model, "SETTLED", 0)
    content = copy.read_bytes()
    status = copy.stat()
    first = hash_model(copy)
    with deadline(5, "a change of the inode's time") as tick:
        while copy.stat().st_ctime_ns == status.st_ctime_ns:
            tick()
            copy.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert hash_model(copy) != first


@pytest.mark.usefixtures("any_size")
def test_hash_of_a_file_that_is_written_to_meanwhile(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = hashlib.sha256

    def start_and_write() -> Any:
        with copy.open("ab") as file:
            file.write(b"more")
        return sha256()

    monkeypatch.setattr(hashlib, "sha256", start_and_write)
    with pytest.raises(ModelError, match="changed while it was being loaded"):
        hash_model(copy)


@pytest.mark.parametrize("engine", ["binding", "native"])
def test_description_is_of_what_was_loaded(copy: Path, star_model: Path, engine: str) -> None:
    classifier = load_model(copy, engine=engine)
    expected = describe_model(copy, classifier)
    shutil.copy(star_model, copy)
    found = describe_model(copy, classifier)
    assert found | {"since": ""} == expected | {"since": ""}
    assert found["sha256"] != hash_model(copy)
    with pytest.raises(ModelError, match=r"^this classifier was not loaded from stars\.bin$"):
        describe_model(star_model, classifier)
    copy.unlink()
    assert describe_model(str(copy), classifier)["sha256"] == expected["sha256"]


def test_description_of_a_large_file_that_changed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyserve.model, "COPIED_BYTES", 0)
    classifier = load_model(copy)
    assert describe_model(copy, classifier)["sha256"] == hash_model(copy)
    copy.with_name("other").write_bytes(copy.read_bytes())
    copy.with_name("other").replace(copy)
    with pytest.raises(ModelError, match="is no longer the file that was loaded"):
        describe_model(copy, classifier)


def test_what_is_truncated_under_the_native_engine(copy: Path) -> None:
    classifier = load_model(copy, engine="native")
    expected = answers(classifier)
    with copy.open("r+b") as file:
        file.truncate(0)
    assert answers(classifier) == expected
    assert not is_overwritten(classifier)


def test_large_file_that_is_overwritten_is_noticed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyserve.model, "COPIED_BYTES", 0)
    before = len(os.listdir("/proc/self/fd"))
    binding, native = load_model(copy), load_model(copy, engine="native")
    content = copy.read_bytes()
    copy.rename(copy.with_name("renamed"))
    assert not is_overwritten(native)
    copy.with_name("renamed").write_bytes(content[:10])
    assert is_overwritten(native)
    assert not is_overwritten(binding)
    del native
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif("PYSERVE_SANITIZE" in os.environ, reason="ASan handles SIGBUS")
def test_load_of_a_large_file_is_rehearsed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def be_cut_short(path: Path) -> Any:
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGBUS)

    monkeypatch.setattr(pyserve.model, "inspect", be_cut_short)
    rehearse_load(copy)
    monkeypatch.setattr(pyserve.model, "COPIED_BYTES", 0)
    with pytest.raises(ModelError, match=r"cannot be served: a signal \(Bus error\) ended the attempt to load it"):
        rehearse_load(copy)
    monkeypatch.undo()
    rehearse_load(copy)
    rehearse_load(copy.with_name("missing"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".", ". cannot be served: it is a directory"),
        ("", ". cannot be served: it is a directory"),
        ("/dev/null", "null cannot be served: it is no regular file"),
        ("a\0b", "the path of a model cannot hold a NUL"),
        ("\ud800", "the path of a model cannot be written in the encoding of this system's file names"),
    ],
)
def test_path_of_no_file(path: str, message: str) -> None:
    for use in (load_model, hash_model, verify_model):
        with pytest.raises(ModelError) as raised:
            use(path)
        assert str(raised.value) == message


def test_find_model_prefers_the_real_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="pyserve fetch amazon_review_full"):
        find_model(tmp_path)
    (tmp_path / "another.ftz").touch()
    with pytest.raises(ModelError, match="name one with --model"):
        find_model(tmp_path)
    (tmp_path / "starter.ftz").touch()
    assert find_model(tmp_path).name == "starter.ftz"
    (tmp_path / "amazon_review_full.ftz").touch()
    assert find_model(tmp_path).name == "amazon_review_full.ftz"


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["predict", "great"]])
def test_no_model_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*command)
    assert (status, out) == (2, "")
    assert "get one with `pyserve fetch amazon_review_full`, or name one with --model" in err
    assert err.count("\n") == 1


def test_model_is_chosen_in_order_and_named_at_start(
    star_model: Path, hostile_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    starter = Path(shutil.copy(star_model, tmp_path / "models" / "starter.ftz"))
    monkeypatch.chdir(tmp_path)

    def started(*options: str, **environment: str) -> str:
        """Start a server, return what it says until it serves, and end it."""
        command = [*PYSERVE, "serve", "--port", "0", *options]
        log = ""
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=clean_environment() | environment
        ) as process:
            assert process.stderr
            for line in process.stderr:
                log += line
                if "sha256" in line:
                    break
            process.terminate()
            process.stderr.read()
        return log

    log = started()
    assert f"serving starter.ftz (5 labels, sha256 {hash_model(starter)}, binding engine) on " in log
    assert "WARNING [" in log
    real = Path(shutil.copy(hostile_model, tmp_path / "models" / "amazon_review_full.ftz"))
    log = started()
    assert f"serving amazon_review_full.ftz (8 labels, sha256 {hash_model(real)}, binding engine) on " in log
    assert "WARNING" not in log
    assert "serving stars.bin" in started(PYSERVE_MODEL=str(star_model))
    assert ", native engine) on " in started("--model", str(star_model), "--engine", "native")
    assert "serving hostile.bin" in started("--model", str(hostile_model), PYSERVE_MODEL=str(star_model))


def ask_for_model(path: Path) -> Reply:
    classifier = load_model(path)
    client = Client(classifier, {"description": describe_model(path, classifier)})
    return client(method="GET", path="/model")


def test_model_resource(star_model: Path) -> None:
    reply = ask_for_model(star_model)
    assert (reply.code, reply.header("content-type")) == (200, "application/json")
    fields = json.loads(reply.body)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", fields.pop("since"))
    assert fields == {
        "name": "stars.bin",
        "sha256": hash_model(star_model),
        "size": star_model.stat().st_size,
        "labels": list(load_model(star_model).labels),
        "dim": 8,
        "word_ngrams": 2,
        "quantized": False,
        "loss": "softmax",
        "engine": "binding",
    }
    assert str(star_model.parent) not in reply.body.decode()


def test_model_resource_of_hostile_labels(hostile_model: Path) -> None:
    reply = ask_for_model(hostile_model)
    assert json.loads(reply.body)["labels"] == list(load_model(hostile_model).labels)


def test_model_resource_takes_no_other_method(star_model: Path) -> None:
    classifier = load_model(star_model)
    client = Client(classifier, {"description": describe_model(star_model, classifier)})
    reply = client(method="POST", path="/model")
    assert reply.code == 405
    assert "GET" in (reply.header("allow") or "")


def test_app_without_description_has_no_model_resource(classifier: Classifier) -> None:
    assert Client(classifier)(method="GET", path="/model").code == 404
