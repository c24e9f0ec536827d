"""The models on which the native engine is held against the binding, and the texts."""

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.trained_models import WORD_LIST, Recipe, train

NGRAMS = {"wordNgrams": 2, "bucket": 1000}
SUBWORDS = {"minn": 2, "maxn": 4, "bucket": 1000}
RECIPES = {
    "words": Recipe(),
    "words-wide": Recipe(args={"dim": 100}),
    "one-dimension": Recipe(args={"dim": 1}),
    "dim-64": Recipe(args=NGRAMS | {"dim": 64}),
    "dim-256": Recipe(args=NGRAMS | {"dim": 256}),
    "dim-512": Recipe(labels=17, args=NGRAMS | {"dim": 512}),
    "one-label": Recipe(labels=1, args=NGRAMS),
    "bigrams": Recipe(args=NGRAMS | {"dim": 16}),
    "bigrams-one-bucket": Recipe(args={"wordNgrams": 2, "bucket": 1}),
    "bigrams-power-of-two": Recipe(args={"wordNgrams": 2, "bucket": 1 << 15, "dim": 33}),
    "five-grams-subwords": Recipe(args=SUBWORDS | {"wordNgrams": 5, "dim": 10}),
    "single-letters": Recipe(args={"minn": 1, "maxn": 1, "bucket": 50}),
    "hs-subwords": Recipe(loss="hs", labels=9, args=SUBWORDS | {"dim": 32}),
    "hs-bigrams": Recipe(loss="hs", labels=30, args=NGRAMS),
    "ns-bigrams": Recipe(loss="ns", labels=7, args=NGRAMS | {"dim": 17}),
    "ova-subwords-bigrams": Recipe(loss="ova", labels=20, args=SUBWORDS | NGRAMS),
    "rare-words-dropped": Recipe(args=NGRAMS | {"minCount": 4}),
    "other-prefix": Recipe(label_prefix="#", args=NGRAMS),
    "many-labels": Recipe(labels=2700, lines=3000, args={"dim": 100, "epoch": 1}),
    "packed-pruned": Recipe(args=NGRAMS | {"dim": 10}, quantize={"cutoff": 600, "qnorm": True}),
    "packed-pruned-subwords": Recipe(args=SUBWORDS | NGRAMS | {"dim": 14}, quantize={"cutoff": 500, "qnorm": True}),
    "packed-whole": Recipe(loss="ova", args=NGRAMS | {"dim": 15}, quantize={}),
    "packed-odd": Recipe(loss="hs", labels=6, args=NGRAMS | {"dim": 9}, quantize={"qnorm": True}),
    "packed-words-only": Recipe(vocabulary=600, lines=900, quantize={"cutoff": 400}),
    "packed-sixteen": Recipe(args=NGRAMS | {"dim": 16}, quantize={}),
    "quantized-thirds": Recipe(args=NGRAMS | {"dim": 11}, quantize={"dsub": 3, "qnorm": True}),
    "quantized-pruned": Recipe(args=NGRAMS | {"dim": 20}, quantize={"cutoff": 700, "qnorm": True}),
    "quantized-one-part": Recipe(loss="ns", args=NGRAMS | {"dim": 5}, quantize={"dsub": 8}),
    "quantized-output": Recipe(labels=300, lines=900, args=NGRAMS, quantize={"qout": True, "qnorm": True}),
    "quantized-output-hs": Recipe(loss="hs", labels=300, lines=900, args=NGRAMS | {"dim": 7}, quantize={"qout": True}),
    "quantized-output-ova": Recipe(
        loss="ova",
        labels=2700,
        lines=3000,
        vocabulary=300,
        args={"dim": 100, "epoch": 1},
        quantize={"qout": True, "qnorm": True},
    ),
}


def craft(
    words: Sequence[tuple[bytes, int]],
    labels: Sequence[tuple[bytes, int]],
    *,
    version: int = 12,
    dim: int = 4,
    loss: int = 3,
    word_ngrams: int = 1,
    bucket: int = 0,
    minn: int = 0,
    maxn: int = 0,
) -> bytes:
    """Write a dense model that nobody trained, of words and labels with their counts."""
    rng = random.Random(11)

    def matrix(rows: int) -> bytes:
        return struct.pack(f"<2q{rows * dim}f", rows, dim, *(rng.gauss(0, 1) for _ in range(rows * dim)))

    entries = [
        text + struct.pack("<xqb", count, kind) for kind, some in enumerate((words, labels)) for text, count in some
    ]
    return b"".join(
        (
            struct.pack("<2i", 793712314, version),
            struct.pack("<12id", dim, 5, 5, 1, 5, word_ngrams, loss, 3, bucket, minn, maxn, 100, 1e-4),
            struct.pack("<3i2q", len(entries), len(words), len(labels), 1000, -1),
            *entries,
            b"\0" + matrix(len(words) + bucket),
            b"\0" + matrix(len(labels)),
        )
    )


SOME_WORDS = [(word.encode(), 3) for word in WORD_LIST.split()]
SOME_LABELS = [(b"__label__%d" % number, 9 - number) for number in range(5)]
# Models that fastText does not train, but loads.
CRAFTED: dict[str, Callable[[], bytes]] = {
    # Where a text comes several times, the last row counts.
    "duplicate-words": lambda: craft(SOME_WORDS * 2 + SOME_WORDS[:9], SOME_LABELS, word_ngrams=2, bucket=1000),
    "duplicate-words-subwords": lambda: craft(SOME_WORDS * 2, SOME_LABELS, minn=2, maxn=4, bucket=300),
    "no-words": lambda: craft([], SOME_LABELS, word_ngrams=2, bucket=500),
    "no-words-subwords": lambda: craft([], SOME_LABELS, word_ngrams=3, minn=1, maxn=3, bucket=500, loss=4),
    "one-label-hs": lambda: craft(SOME_WORDS, SOME_LABELS[:1], loss=1, word_ngrams=2, bucket=100),
    "one-label-ova": lambda: craft(SOME_WORDS, SOME_LABELS[:1], loss=4, word_ngrams=2, bucket=100),
    "hs-of-counts-0": lambda: craft(SOME_WORDS, [(b"__label__%d" % i, 0) for i in range(60)], loss=1),
    # Files of version 11 have no subwords, whatever they say.
    "version-11": lambda: craft(SOME_WORDS, SOME_LABELS, version=11, word_ngrams=2, minn=2, maxn=4, bucket=700),
    "version-11-hs": lambda: craft(SOME_WORDS, SOME_LABELS, version=11, maxn=6, bucket=30, loss=1, dim=33),
}
MODELS = (*RECIPES, *CRAFTED)


def make_model(path: Path, name: str) -> Path:
    """Train or write one of the models."""
    if name in RECIPES:
        return train(path, RECIPES[name])
    path.write_bytes(CRAFTED[name]())
    return path


SPACES = [b" ", b" ", b" ", b" ", b" ", b"  ", b"\t", b"\r", b"\v", b"\f", b"\0", b" \0 ", b"\xc2\xa0", b""]
TOKENS = [
    *(
        b"</s>",
        b"<s>",
        b"</s",
        b"</s>x",
        b"<",
        b">",
        b"__label__",
        b"__label__1",
        b"__label__2x",
        b"__label_",
        b"#1",
        b"#",
    ),
    *(
        b"_label__1",
        b"__LABEL__1",
        b"__label__" + b"y" * 30,
        b"\xff",
        b"\x80\x81",
        b"\xc3",
        b"\xe6\x97",
        b"\xf0\x9f\x98\x80",
    ),
    *(b"0123456789abcdef", b"0123456789abcdefg", b"0123456789abcde", b"internationalizatio", b"extraordinarily" * 3),
    *("é".encode() * n for n in (1, 7, 8, 9, 40)),
]


def make_lines(count: int, seed: int = 5) -> Iterator[bytes]:
    """Yield lines that are unkind to a tokeniser: any bytes, some long, some without a line feed or with several."""
    rng = random.Random(seed)
    words = [word.encode() for word in WORD_LIST.split()] + [f"word{i}".encode() for i in range(150)]
    yield from (
        b"",
        b"\n",
        b" ",
        b" \n",
        b"\0",
        b"</s>",
        b"</s>\n",
        b"a</s>\n",
        b"\n\n",
        b"__label__1\n",
        b"the",
        b"the\n",
    )
    yield from (
        b"the " * 20_000 + b"\n",
        b"x" * 70_000 + b"\n",
        b" " * 9_000 + b"good\n",
        b"w" * 4096 + b" good book\n",
    )
    for size in (4094, 4095, 4096, 4097, 4098):
        yield b"a" * (size - 5) + b" good\n"
        yield b"good " + b"b" * (size - 5) + b"\n"
        yield (b"good book " * 1000)[:size] + b"\n"
    for _ in range(count):
        parts = []
        for _ in range(rng.choice((1, 2, 3, 5, 8, 13, 40, 90))):
            kind = rng.random()
            if kind < 0.75:
                parts.append(rng.choice(words))
            elif kind < 0.9:
                parts.append(rng.choice(TOKENS))
            else:
                parts.append(rng.randbytes(rng.randrange(1, 20)).replace(b"\n", b"n"))
            parts.append(rng.choice(SPACES))
        end = rng.random()
        parts.append(b"\n" if end < 0.8 else b"" if end < 0.9 else b"\nthe great</s> \n")
        yield b"".join(parts)


def make_limits(rng: random.Random, labels: int) -> tuple[int, float]:
    """Draw k and a threshold, of any kind."""
    k = rng.choice((1, 1, 1, 2, 3, 5, -1, labels, labels + 7, 20, 0, -2))
    threshold = rng.choice((0.0, 0.0, 0.0, -1.0, 1e-6, 1e-5, 0.01, 0.3, 0.5, 1.0, 2.0, rng.random()))
    return k, threshold
