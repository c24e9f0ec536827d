"""What the native engine does with damaged files, with files that change, and with texts of any size."""

import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir

import pytest

from pyserve._model_file import FormatError, inspect
from pyserve._native import NativeEngine
from tests.conftest import ROOT
from tests.model_fields import header_fields
from tests.native_recipes import RECIPES, craft, make_lines
from tests.support import load_binding, resident_bytes
from tests.trained_models import Recipe, train

sparing = pytest.mark.skipif("PYSERVE_SANITIZE" in os.environ, reason="ASan keeps freed memory for a while")
FUZZED = ("bigrams", "hs-subwords", "packed-pruned", "quantized-thirds", "quantized-output-hs", "ova-subwords-bigrams")


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code that imports the tests, and the same pyserve as they do."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)])}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=gettempdir(),
        env=environment,
        capture_output=True,
        check=False,
        text=True,
        timeout=1200,
    )


def fuzz(path: Path, seed: int, copies: int) -> tuple[int, int]:
    """Return how many damaged copies were rejected, and how many answered."""
    done = run_python("from tests.native_fuzz import main; main()", str(path), str(seed), str(copies), "20")
    assert done.returncode == 0, done.stderr[-2000:]
    rejected, answered = map(int, done.stdout.split())
    return rejected, answered


@pytest.mark.parametrize("name", FUZZED)
def test_damaged_models_are_rejected_or_answered(train_recipe: Callable[[str], Path], name: str) -> None:
    rejected, answered = fuzz(train_recipe(name), 1, 150)
    assert rejected > 20
    assert answered > 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", RECIPES)
def test_damaged_models_at_length(train_recipe: Callable[[str], Path], name: str) -> None:
    rejected, answered = fuzz(train_recipe(name), 2, 3000)
    assert rejected > 400
    assert answered > 400


WORDS = [b"w" * 20_000, *(b"%d" % i + b"w" * 200 for i in range(300))]


@pytest.mark.parametrize(
    ("number", "maxn", "accepted"),
    [
        (1, 1000, False),
        (1, 400, False),
        (1, 300, True),
        (301, 6, True),
        (301, 0, True),
        (301, 400, False),
    ],
)
def test_words_with_too_many_subwords_are_rejected(tmp_path: Path, number: int, maxn: int, accepted: bool) -> None:
    """The binding would be busy for a minute with a file of 20 KB."""
    path = tmp_path / "model"
    path.write_bytes(craft([(word, 1) for word in WORDS[:number]], [(b"__label__1", 1)], minn=1, maxn=maxn, bucket=1))
    if accepted:
        assert inspect(path).maxn == maxn
        return
    with pytest.raises(FormatError, match=f"the subwords of the dictionary.*maxn is {maxn}.*10\\^9"):
        inspect(path)


def test_subwords_of_a_file_of_version_11_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(craft([(WORDS[0], 1)], [(b"__label__1", 1)], version=11, maxn=1000, bucket=1))
    assert inspect(path).words == 1


@pytest.mark.parametrize(
    ("number", "count", "accepted"),
    [
        (14_000, 0, True),
        (14_200, 0, False),
        (60_000, 0, False),
        (60_000, 1, True),
    ],
)
def test_tree_with_too_long_paths_is_rejected(tmp_path: Path, number: int, count: int, accepted: bool) -> None:
    """Of labels that were never counted, each but the first two lies deeper than the one before."""
    path = tmp_path / "model"
    labels = [(b"__label__%d" % i, count) for i in range(number)]
    path.write_bytes(craft([(b"good", 1)], labels, loss=1, dim=1))
    if accepted:
        assert len(NativeEngine(path).predict("good\n", 3)) == 3
        return
    with pytest.raises(FormatError, match=r"tree whose paths have [0-9]+ steps or more, allowed are 100000000"):
        inspect(path)
    path.write_bytes(craft([(b"good", 1)], labels, loss=3, dim=1))
    assert len(inspect(path).labels) == number


@pytest.fixture(scope="module")
def build_harness(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that builds the engine, without Python around it, with a macro set."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    directory = tmp_path_factory.mktemp("harness")

    def build(name: str, *options: str) -> Path:
        binary = directory / name
        sources = [
            ROOT / "tests" / "native_harness.cpp",
            ROOT / "ext" / "model_file.cpp",
            *ROOT.glob("ext/native_*.cpp"),
        ]
        sources = [source for source in sources if source.name != "native_pybind.cpp"]
        subprocess.run(
            [compiler, "-std=c++17", "-O0", "-ffp-contract=off", f"-I{ROOT / 'ext'}", *options, *sources, "-o", binary],
            check=True,
            timeout=300,
        )
        return binary

    return build


def run_harness(binary: Path, model: Path, lines: list[bytes]) -> list[str]:
    framed = b"".join(struct.pack("<I", len(line)) + line for line in lines)
    done = subprocess.run([binary, model], input=framed, capture_output=True, check=True, timeout=120)
    return done.stdout.decode().splitlines()


def count_differences(model: Path, lines: list[bytes], answers: list[str]) -> dict[bool, int]:
    """Count the lines with and without bytes beyond ASCII whose answer is not the binding's."""
    binding = load_binding(model)
    labels = NativeEngine(model).info.labels
    differing = {True: 0, False: 0}
    for line, answer in zip(lines, answers, strict=True):
        count, label, probability = answer.split()
        found = [(float.fromhex(probability), labels[int(label)])] if int(count) else []
        differing[not line.isascii()] += found != binding.predict(line, 1, 0.0, "surrogateescape")
    return differing


def test_wrong_hash_is_noticed(train_recipe: Callable[[str], Path], build_harness: Callable[..., Path]) -> None:
    """The negative control: an engine that hashes bytes as unsigned numbers must not pass for the right one."""
    model = train_recipe("bigrams")
    wrong = build_harness("wrong", "-DPYSERVE_HASH_BYTE=uint8_t")
    lines = list(make_lines(300))
    differing = count_differences(model, lines, run_harness(wrong, model, lines))
    assert differing[True] > 50
    assert differing[False] == 0


def test_portable_kernel_like_binding(train_recipe: Callable[[str], Path], build_harness: Callable[..., Path]) -> None:
    """What other processors run, built for this one."""
    portable = build_harness("portable", "-DPYSERVE_PORTABLE")
    lines = list(make_lines(300))
    for name in FUZZED:
        model = train_recipe(name)
        assert count_differences(model, lines, run_harness(portable, model, lines)) == {True: 0, False: 0}


def test_model_is_replaced_by_rename(train_recipe: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copy(train_recipe("bigrams"), path)
    lines = list(make_lines(100))
    before = NativeEngine(path)
    answers = [before.predict(line, -1 if line.strip() else 1) for line in lines]
    other = tmp_path / "other"
    shutil.copy(train_recipe("hs-subwords"), other)
    other.replace(path)
    assert [before.predict(line, -1 if line.strip() else 1) for line in lines] == answers
    assert len(NativeEngine(path).info.labels) == RECIPES["hs-subwords"].labels


def test_model_is_cut_under_our_feet(train_recipe: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copy(train_recipe("bigrams-power-of-two"), path)
    script = (
        "import os, sys\nfrom pyserve._native import NativeEngine\n"
        "engine = NativeEngine(sys.argv[1])\nprint(len(engine.predict('good book\\n')), flush=True)\n"
        "os.truncate(sys.argv[1], 0)\nengine.predict('good book\\n')\nprint('answered')\n"
    )
    done = run_python(script, str(path))
    assert done.stdout == "1\n"
    assert done.returncode == -signal.SIGBUS or "AddressSanitizer: BUS" in done.stderr


@sparing
@pytest.mark.parametrize("name", ["packed-pruned", "ova-subwords-bigrams", "five-grams-subwords"])
def test_memory_is_bounded_for_any_text(train_recipe: Callable[[str], Path], name: str) -> None:
    engine = NativeEngine(train_recipe(name))
    texts = [b"w" * (1 << 20) + b"\n", b"good " * 1_000_000 + b"\n", b" " * (1 << 20), "日本語 ".encode() * 100_000]
    for text in texts:
        engine.predict(text)
    before = resident_bytes()
    for text in texts * 3:
        engine.predict(text)
    # Twice the longest text, and what the allocator keeps of that.
    assert resident_bytes() - before < 24 << 20


@sparing
def test_memory_is_flat(train_recipe: Callable[[str], Path]) -> None:
    path = train_recipe("bigrams")
    lines = list(make_lines(300))
    engine = NativeEngine(path)

    def work(rounds: int) -> None:
        for _ in range(rounds):
            for line in lines[20:]:
                engine.predict(line, 3)
            with pytest.raises(ValueError, match="1 or higher"):
                engine.predict("good\n", 0)
            NativeEngine(path)

    work(20)
    before = resident_bytes()
    work(150)
    assert resident_bytes() - before < 1 << 20


@sparing
def test_codes_of_all_ngrams_are_not_copied(tmp_path: Path) -> None:
    dim, bucket = 10, 2_000_000
    intact = craft(
        [(b"good", 1)], [(b"__label__0", 1), (b"__label__1", 1)], dim=dim, word_ngrams=2, bucket=bucket // 1000
    )
    fields = header_fields(intact)
    head = bytearray(intact[: fields["quantized"][0]])
    struct.pack_into("<i", head, fields["bucket"][0], bucket)
    rng = random.Random(3)
    codes = rng.randbytes(5 * (1 + bucket))
    centroids = struct.pack("<2560f", *(rng.gauss(0, 1) for _ in range(2560)))
    shape = struct.pack("<?2qi", False, 1 + bucket, dim, len(codes))
    path = tmp_path / "model"
    quantizer = struct.pack("<4i", dim, 5, 2, 2)
    path.write_bytes(head + b"\1" + shape + codes + quantizer + centroids + intact[fields["qout"][0] :])
    before = resident_bytes()
    engine = NativeEngine(path)
    assert resident_bytes() - before < 8 << 20  # a copy would take 16 MB
    binding = load_binding(path)
    for line in make_lines(300):
        assert engine.predict(line, -1) == binding.predict(line, -1, 0.0, "strict")


@sparing
def test_large_matrix_is_not_read(tmp_path: Path) -> None:
    """A model of 400 MB takes the memory of the pages that answers need."""
    path = train(tmp_path / "small", Recipe(args={"wordNgrams": 2, "bucket": 1000, "dim": 50}))
    content = path.read_bytes()
    fields_bucket = 8 + 4 * 8
    rows_before = struct.unpack_from("<i", content, fields_bucket)[0]
    bucket = 2_000_000
    large = tmp_path / "large"
    marker = struct.pack("<qq", NativeEngine(path).info.input_shape[0], 50)
    start = content.index(marker)
    cells = start + 16 + 4 * 50 * (NativeEngine(path).info.words + rows_before)
    head = bytearray(content[:start])
    struct.pack_into("<i", head, fields_bucket, bucket)
    with large.open("wb") as file:
        file.write(head + struct.pack("<qq", NativeEngine(path).info.words + bucket, 50) + content[start + 16 : cells])
        file.seek(4 * 50 * (bucket - rows_before), os.SEEK_CUR)
        file.write(content[cells:])
    before = resident_bytes()
    engine = NativeEngine(large)
    assert engine.info.size > 400_000_000
    assert engine.predict("good book\n")
    assert resident_bytes() - before < 4 << 20
