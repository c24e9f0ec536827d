import json
import os
import random
import resource
import struct
import subprocess
import sys
from pathlib import Path

import fasttext_pybind
import pytest

from pyserve._model_file import FormatError, ModelInfo, inspect
from tests.model_fields import header_fields
from tests.support import load_binding
from tests.trained_models import Recipe, train

NGRAMS = {"wordNgrams": 2, "bucket": 300, "minn": 2, "maxn": 3}
QUANTIZED = {"cutoff": 400, "qnorm": True}
RECIPES = {
    **{loss: Recipe(loss=loss, args=NGRAMS) for loss in ("softmax", "hs", "ns", "ova")},
    **{
        f"{loss}-quantized": Recipe(loss=loss, args=NGRAMS, quantize=QUANTIZED)
        for loss in ("softmax", "hs", "ns", "ova")
    },
    "words-only": Recipe(),
    "quantized-whole": Recipe(args=NGRAMS | {"dim": 5}, quantize={"dsub": 3}),
    "quantized-output": Recipe(labels=300, lines=900, args=NGRAMS, quantize={"qout": True}),
}
TEXTS = ["good book, great plot\n", "awful phone\n", "never seen before café\n", "the the the 日本語\n", "\n"]
MAGIC = struct.pack("<i", 793712314)
# What a supervised model's answers do not depend on, whatever the value.
WITHOUT_EFFECT = {"ws", "epoch", "minCount", "neg", "lrUpdateRate", "t", "ntokens"}
# Fields where another value may make another intact model, which no check of the structure can tell from the right one.
MEANINGFUL = {"version", "wordNgrams", "loss", "bucket", "minn", "maxn"}


@pytest.fixture(scope="session")
def format_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("format")
    return {name: train(directory / f"{name}.model", recipe) for name, recipe in RECIPES.items()}


@pytest.fixture(params=RECIPES)
def format_model(request: pytest.FixtureRequest, format_models: dict[str, Path]) -> Path:
    return format_models[request.param]


def test_inspect_describes_the_model(format_models: dict[str, Path]) -> None:
    for name, path in format_models.items():
        recipe = RECIPES[name]
        info = inspect(path)
        model = load_binding(path)
        args = model.getArgs()
        assert isinstance(info, ModelInfo)
        assert info.size == path.stat().st_size
        assert info.version == 12
        assert list(info.labels) == model.getLabels("strict")[0]
        assert info.words == len(model.getVocab("strict")[0])
        assert (info.dim, info.word_ngrams, info.minn, info.maxn) == (args.dim, args.wordNgrams, args.minn, args.maxn)
        assert info.bucket == args.bucket
        assert info.loss == recipe.loss
        assert info.quantized == model.isQuant()
        quantize = recipe.quantize or {}
        assert info.qout == quantize.get("qout", False)
        assert info.qnorm == quantize.get("qnorm", False)
        assert info.pruned == ("cutoff" in quantize)
        assert info.input_shape[1] == info.output_shape[1] == args.dim
        assert info.input_shape[0] == (400 if info.pruned else info.words + info.bucket)
        assert info.output_shape[0] == len(info.labels)


def test_inspect_takes_bytes_and_strings(format_models: dict[str, Path]) -> None:
    path = format_models["softmax"]
    assert inspect(str(path)).size == inspect(os.fsencode(path)).size == path.stat().st_size


def test_model_info_cannot_be_made_or_changed(format_models: dict[str, Path]) -> None:
    with pytest.raises(TypeError):
        ModelInfo()
    info = inspect(format_models["softmax"])
    with pytest.raises(AttributeError):
        info.dim = 3  # type: ignore[misc]
    assert "softmax" in repr(info)


def test_labels_keep_bytes_that_are_not_utf8(format_models: dict[str, Path], tmp_path: Path) -> None:
    content = format_models["softmax"].read_bytes().replace(b"__label__1\0", b"__label__\xff\0")
    damaged = tmp_path / "model"
    damaged.write_bytes(content)
    assert "__label__\udcff" in inspect(damaged).labels


def test_every_truncation_is_rejected(format_model: Path, tmp_path: Path) -> None:
    content = format_model.read_bytes()
    cut = tmp_path / "model"
    cut.write_bytes(content)
    inspect(cut)
    for length in range(len(content) - 1, -1, -1):
        os.truncate(cut, length)
        with pytest.raises(FormatError) as caught:
            inspect(cut)
        assert 0 <= caught.value.offset <= length
        assert str(caught.value).startswith(f"byte {caught.value.offset}: ")


def test_truncations_of_the_real_model_are_rejected(real_model: Path, tmp_path: Path) -> None:
    content = real_model.read_bytes()
    fields = header_fields(content)
    ends = {length for offset, size in fields.values() for length in range(offset, offset + size + 1)}
    sample = ends | set(random.Random(1).sample(range(len(content)), 500)) | {len(content) - 1}
    cut = tmp_path / "model"
    cut.write_bytes(content)
    inspect(cut)
    for length in sorted(sample - {len(content)}, reverse=True):
        os.truncate(cut, length)
        with pytest.raises(FormatError):
            inspect(cut)


@pytest.mark.parametrize("tail", [b"\0", b"\n", b"more" * 1000])
def test_bytes_behind_the_end_are_rejected(format_model: Path, tmp_path: Path, tail: bytes) -> None:
    content = format_model.read_bytes()
    longer = tmp_path / "model"
    longer.write_bytes(content + tail)
    with pytest.raises(FormatError, match=f"{len(tail)} bytes follow") as caught:
        inspect(longer)
    assert caught.value.offset == len(content)


def test_every_other_value_of_a_header_byte_is_rejected_or_known_to_be_harmless(
    format_model: Path, tmp_path: Path
) -> None:
    content = format_model.read_bytes()
    damaged = tmp_path / "model"
    damaged.write_bytes(content)
    accepted = set()
    with damaged.open("r+b", buffering=0) as file:
        for name, (offset, size) in header_fields(content).items():
            for position in range(offset, offset + size):
                for value in range(256):
                    if value == content[position]:
                        continue
                    os.pwrite(file.fileno(), bytes([value]), position)
                    try:
                        inspect(damaged)
                    except FormatError:
                        continue
                    accepted.add(name)
                os.pwrite(file.fileno(), content[position : position + 1], position)
    # The last: whether the output is quantized counts for quantized models only.
    assert accepted <= WITHOUT_EFFECT | MEANINGFUL | {"qout"}


@pytest.mark.parametrize(
    "name", ["softmax", "hs", "ova-quantized", "softmax-quantized", "words-only", "quantized-output"]
)
def test_accepted_damage_answers_the_same_or_is_another_model(
    format_models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    path = format_models[name]
    content = path.read_bytes()
    damaged = tmp_path / "model"
    variants = []
    for field, (offset, size) in header_fields(content).items():
        for position in range(offset, offset + size):
            for bit in range(8):
                value = content[position] ^ (1 << bit)
                damaged.write_bytes(content[:position] + bytes([value]) + content[position + 1 :])
                try:
                    inspect(damaged)
                except FormatError:
                    continue
                variants.append((field, [[position, value]]))
    request = {"model": str(path), "patches": [[], *(patch for _, patch in variants)], "texts": TEXTS, "seconds": 20}
    script = Path(__file__).with_name("binding_probe.py")
    probe = subprocess.run(
        [sys.executable, str(script)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    intact, *said = map(json.loads, probe.stdout.splitlines())
    assert len(said) == len(variants)
    assert all(intact)
    for (field, _), answer in zip(variants, said, strict=True):
        if field in MEANINGFUL:
            assert isinstance(answer, list), (field, answer)
        else:
            assert answer == intact, field


def test_model_of_another_kind_is_named(format_models: dict[str, Path], tmp_path: Path) -> None:
    content = bytearray(format_models["softmax"].read_bytes())
    offset, _ = header_fields(bytes(content))["model"]
    other = tmp_path / "model"
    for kind, name in ((1, "cbow"), (2, "skipgram")):
        content[offset] = kind
        other.write_bytes(content)
        with pytest.raises(FormatError, match=f"{name}.*supervised") as caught:
            inspect(other)
        assert caught.value.offset == offset


@pytest.mark.parametrize("kind", ["cbow", "skipgram"])
def test_unsupervised_model_is_rejected(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model"
    train(path, Recipe(loss="ns", lines=50, args={"model": getattr(fasttext_pybind.model_name, kind), "bucket": 10}))
    with pytest.raises(FormatError, match=kind):
        inspect(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("magic", "i", 0), "no fastText model"),
        (("version", "i", 13), "11 to 12"),
        (("dim", "i", 0), "1 to"),
        (("dim", "i", 5), "columns"),
        (("wordNgrams", "i", -1), "0 to 100"),
        (("loss", "i", 5), "softmax"),
        (("bucket", "i", 0), "bucket is 0"),
        (("bucket", "i", 299), "rows"),
        (("maxn", "i", -1), "0 to"),
        (("t", "d", float("nan")), "finite"),
        (("size", "i", 2**31 - 1), "dictionary"),
        (("nlabels", "i", 0), "labels"),
        (("pruneidx_size", "q", -2), "kept n-grams"),
        (("quantized", "b", 2), "0 to 1"),
        (("output.rows", "q", 5), "one for every label"),
        (("input.rows", "q", 2**62), "words and buckets"),
    ],
)
def test_reason_of_a_wrong_field(
    format_models: dict[str, Path], tmp_path: Path, change: tuple[str, str, float], reason: str
) -> None:
    field, code, value = change
    content = bytearray(format_models["softmax"].read_bytes())
    offset, _ = header_fields(bytes(content))[field]
    struct.pack_into("<" + code, content, offset, value)
    wrong = tmp_path / "model"
    wrong.write_bytes(content)
    with pytest.raises(FormatError, match=reason):
        inspect(wrong)


def test_quantizer_of_another_shape_is_rejected(format_models: dict[str, Path], tmp_path: Path) -> None:
    content = format_models["quantized-whole"].read_bytes()
    fields = header_fields(content)
    wrong = tmp_path / "model"
    for field in ("input.codesize", "input.pq.dim", "input.pq.nsubq", "input.pq.dsub", "input.pq.lastdsub"):
        for change in (-1, 1):
            copy = bytearray(content)
            offset, _ = fields[field]
            (value,) = struct.unpack_from("<i", content, offset)
            struct.pack_into("<i", copy, offset, value + change)
            wrong.write_bytes(copy)
            with pytest.raises(FormatError):
                inspect(wrong)


def test_pruned_index_out_of_range_or_twice_is_rejected(format_models: dict[str, Path], tmp_path: Path) -> None:
    content = format_models["softmax-quantized"].read_bytes()
    fields = header_fields(content)
    (kept,) = struct.unpack_from("<q", content, fields["pruneidx_size"][0])
    start = fields["quantized"][0] - 8 * kept
    first_id, first_row = struct.unpack_from("<ii", content, start)
    wrong = tmp_path / "model"
    for slot, value, reason in (
        (0, -1, "bucket - 1"),
        (0, 300, "bucket - 1"),
        (1, -1, "row"),
        (1, kept, "row"),
        (0, first_id, "twice"),
        (1, first_row, "two kept"),
    ):
        copy = bytearray(content)
        struct.pack_into("<i", copy, start + 8 + 4 * slot, value)
        wrong.write_bytes(copy)
        with pytest.raises(FormatError, match=reason) as caught:
            inspect(wrong)
        assert caught.value.offset == start + 8 + 4 * slot


def test_two_labels_of_one_name_are_rejected(format_models: dict[str, Path], tmp_path: Path) -> None:
    wrong = tmp_path / "model"
    wrong.write_bytes(format_models["softmax"].read_bytes().replace(b"__label__1\0", b"__label__2\0"))
    with pytest.raises(FormatError, match="same name"):
        inspect(wrong)


def test_what_is_no_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        inspect(tmp_path / "missing")
    assert caught.value.filename == tmp_path / "missing"
    with pytest.raises(FormatError, match="regular"):
        inspect(tmp_path)
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(FormatError, match="empty"):
        inspect(empty)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(FormatError, match="regular"):
        inspect(fifo)
    with pytest.raises(ValueError, match="NUL"):
        inspect("a\0b")


@pytest.mark.parametrize("size", [1, 3, 4, 7, 8, 63, 64, 65, 5000])
def test_random_bytes_are_rejected(tmp_path: Path, size: int) -> None:
    rng = random.Random(size)
    noise = tmp_path / "model"
    for start in (b"", MAGIC, MAGIC + struct.pack("<i", 12)):
        noise.write_bytes(start + rng.randbytes(size))
        with pytest.raises(FormatError):
            inspect(noise)


def test_large_model_is_checked_without_reading_it(tmp_path: Path) -> None:
    """A model of 4 GB whose matrix is a hole of the file: no page of it may be touched."""
    rows, dim = 10_000_000, 100
    path = tmp_path / "model"
    args = struct.pack("<12id", dim, 5, 5, 1, 5, 2, 3, 3, rows - 1, 0, 0, 100, 1e-4)
    dictionary = struct.pack("<iiiqq", 2, 1, 1, 10, -1) + b"word\0" + struct.pack("<qb", 5, 0)
    dictionary += b"__label__a\0" + struct.pack("<qb", 5, 1)
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<i", 12) + args + dictionary + b"\0" + struct.pack("<qq", rows, dim))
        file.seek(4 * rows * dim, os.SEEK_CUR)
        file.write(b"\0" + struct.pack("<qq", 1, dim) + bytes(4 * dim))
    assert path.stat().st_size > 4_000_000_000
    # Touched pages would all be counted as faults, and 4 GB are a million of them.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    assert inspect(path).input_shape == (rows, dim)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000
