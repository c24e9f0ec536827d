"""Small fastText models, trained by the binding, to test the format's reader and the engine with."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import fasttext_pybind

# With fewer threads 0.9.3 leaves the end of the input matrix uninitialised: DenseMatrix::uniform cuts it into tenths,
# rounded down, one for every thread, so that an eleventh thread is needed for the rest.
THREADS = 12
LOSSES = {
    "softmax": fasttext_pybind.loss_name.softmax,
    "hs": fasttext_pybind.loss_name.hs,
    "ns": fasttext_pybind.loss_name.ns,
    "ova": fasttext_pybind.loss_name.ova,
}
WORD_LIST = """
the a of and book film phone price battery screen plot ending actor service good bad great awful fine poor love
never always works broke café naïve über Ñandú 好 書 日本語 Привет ελληνικά 😀 👍🏽 don't re-read 100% $5 ( ) , . !
extraordinarily internationalization 0123456789abcdef 0123456789abcdefg x y z
"""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: the binding's arguments, and those of quantize() where it is quantized."""

    loss: str = "softmax"
    labels: int = 4
    label_prefix: str = "__label__"
    lines: int = 300
    vocabulary: int = 150
    args: dict[str, object] = field(default_factory=dict)
    quantize: dict[str, object] | None = None


def write_corpus(path: Path, recipe: Recipe) -> None:
    """Write lines of labelled text; the words lean towards the label, so that the model has something to learn."""
    rng = random.Random(7)
    words = WORD_LIST.split()
    vocabulary = words + [f"w{i}é" if i % 7 == 0 else f"word{i}" for i in range(recipe.vocabulary)]
    with path.open("w", encoding="utf-8") as corpus:
        for line in range(recipe.lines):
            label = line if line < recipe.labels else min(int(rng.expovariate(0.5)), recipe.labels - 1)
            leaning = [vocabulary[(label * 13 + i) % len(vocabulary)] for i in range(20)]
            line_words = [
                rng.choice(leaning if rng.random() < 0.4 else vocabulary) for _ in range(rng.randrange(3, 25))
            ]
            corpus.write(f"{recipe.label_prefix}{label} {' '.join(line_words)}\n")


def train(path: Path, recipe: Recipe) -> Path:
    """Train a model and save it as `path`."""
    corpus = path.with_suffix(".txt")
    write_corpus(corpus, recipe)
    args = fasttext_pybind.args()
    args.input = str(corpus)
    args.model = fasttext_pybind.model_name.supervised
    args.loss = LOSSES[recipe.loss]
    args.label = recipe.label_prefix
    args.minCount, args.minn, args.maxn, args.wordNgrams = 1, 0, 0, 1
    args.dim, args.bucket, args.epoch, args.lr = 4, 0, 3, 0.3
    args.thread, args.verbose = THREADS, 0
    for name, value in recipe.args.items():
        setattr(args, name, value)
    model = fasttext_pybind.fasttext()
    fasttext_pybind.train(model, args)
    if recipe.quantize is not None:
        quantize = {"qout": False, "cutoff": 0, "retrain": False, "dsub": 2, "qnorm": False, **recipe.quantize}
        qout, cutoff, retrain, dsub, qnorm = quantize.values()
        model.quantize(str(corpus), qout, cutoff, retrain, 1, 0.1, THREADS, 0, dsub, qnorm)
    model.saveModel(str(path))
    return path
