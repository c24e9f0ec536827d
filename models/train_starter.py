#!/usr/bin/env python3
"""Rebuild ``starter.ftz``, the small five-star review model that comes with the project.

The training text is generated here, from the phrases of ``starter_text.txt`` and from the sentiment lexicon of VADER
(Hutto and Gilbert, 2014; package vaderSentiment, MIT licence), which gives each of 7,500 words a mean valence between
-4 and 4. Nothing is random that is not drawn from one seeded generator, so the text is the same each time.

fastText itself is deterministic only with one thread. With one thread it initialises only the first tenth of the
input matrix (``DenseMatrix::uniform``); the rest is what the allocation held. At ``DIMENSIONS`` and ``BUCKETS`` that
matrix has 80 MB, and glibc takes an allocation of more than 32 MB afresh from the system, as zeros. So the rest is
always zero, and the rebuilt file is the same to the byte where the builds of fastText and of libm are the same.

Usage: ``python models/train_starter.py [--output PATH] [--text PATH]``.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from bisect import bisect
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
PHRASES = HERE / "starter_text.txt"
OUTPUT = HERE / "starter.ftz"

SEED = 20
LINES = 240_000
DIMENSIONS = 10
BUCKETS = 2_000_000
EPOCHS = 2
LEARNING_RATE = 0.1

# What is kept of the input matrix, by norm; this decides the file's size.
WORDS_KEPT = 15_000
PAIRS_KEPT = 9_000
# A pair of words that real reviews share with the generated ones says less there than it did here, and what the model
# is certain of here is not certain there. Chosen on the tuning sentences.
PAIR_SCALE = 0.6
OUTPUT_SCALE = 0.6

STARS = (1, 2, 3, 4, 5)
# How a word's valence spreads over the stars: the first row whose bound the valence does not exceed.
STARS_OF_VALENCE = (
    (-2.2, (0.66, 0.26, 0.06, 0.01, 0.01)),
    (-1.4, (0.46, 0.38, 0.12, 0.03, 0.01)),
    (-0.7, (0.26, 0.42, 0.24, 0.06, 0.02)),
    (0.0, (0.15, 0.30, 0.35, 0.13, 0.07)),
    (0.7, (0.07, 0.13, 0.35, 0.30, 0.15)),
    (1.4, (0.02, 0.06, 0.24, 0.42, 0.26)),
    (2.2, (0.01, 0.03, 0.12, 0.38, 0.46)),
    (4.0, (0.01, 0.01, 0.06, 0.26, 0.66)),
)
# The shares of kinds of clauses in a review of 1 to 5 stars. A number names the remarks of that many stars.
CLAUSES_OF_STAR: dict[int, dict[str, float]] = {
    1: {"1": 34, "2": 5, "neg2": 14, "very neg1": 5, "lexicon": 22, "no pos": 4, "neg1": 3, "fact": 10, "chatter": 12},
    2: {
        "2": 34,
        "1": 3,
        "3": 4,
        "neg1": 14,
        "very neg1": 2,
        "lexicon": 16,
        "no pos": 8,
        "but neg": 6,
        "fact": 10,
        "chatter": 12,
    },
    3: {
        "3": 36,
        "2": 5,
        "4": 5,
        "meh": 12,
        "pos1": 4,
        "neg1": 4,
        "a bit neg1": 4,
        "mixed": 10,
        "lexicon": 8,
        "fact": 10,
        "chatter": 12,
    },
    4: {
        "4": 36,
        "5": 5,
        "3": 2,
        "pos1": 13,
        "a bit neg1": 6,
        "no neg": 3,
        "but pos": 6,
        "lexicon": 16,
        "fact": 10,
        "chatter": 12,
    },
    5: {"5": 36, "4": 3, "pos2": 15, "very pos1": 6, "pos1": 3, "no neg": 2, "lexicon": 22, "fact": 10, "chatter": 12},
}
CLAUSE_COUNTS = {1: 30, 2: 30, 3: 20, 4: 12, 5: 8}
# Shares of ways of typing: most people type sentences, some do not, and many programs normalise.
TYPING = {"sentences": 44, "lower": 20, "bare": 8, "capitals": 8, "normalised": 20}
# Shares of lines: whole reviews; one word typed in some way; no opinion at all; nothing but unknown words.
LINE_KINDS = {"review": 84, "word": 10, "plain": 3, "unknown": 3}
STARS_WITHOUT_OPINION = (0.14, 0.18, 0.36, 0.18, 0.14)
# People differ: reviews that say the same come with one star more or less.
NEIGHBOUR_FRACTION = 0.10


class Source:
    """A seeded source of choices, built on ``Random.random`` alone, which is the same in every version of Python."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)  # noqa: S311 - reproducible text is wanted here, not secrets

    def chance(self, share: float) -> bool:
        """Say yes in ``share`` of all calls."""
        return self._random.random() < share

    def choose(self, items: Sequence[str]) -> str:
        """Pick one of the items, each as likely as the others."""
        return items[int(self._random.random() * len(items))]

    def weigh(self, weights: Sequence[float]) -> int:
        """Pick an index; ``weights`` are cumulative sums."""
        return bisect(weights, self._random.random() * weights[-1])


class Weighted:
    """Items with weights, to be drawn from."""

    def __init__(self, weights: dict[str, float]) -> None:
        self._items = list(weights)
        self._sums = list(accumulate(weights.values()))

    def draw(self, source: Source) -> str:
        """Pick an item, as likely as its weight says."""
        return self._items[source.weigh(self._sums)]


def read_phrases(path: Path = PHRASES) -> dict[str, list[str]]:
    """Read the sections of the phrase file; its first lines describe its form."""
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    parts = re.split(r"^\[(.+)\]$", text, flags=re.MULTILINE)
    return {
        name: [" ".join(entry.split()) for entry in body.split("|")]
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def read_lexicon() -> dict[str, float]:
    """Read VADER's words and their valence; a file inside the package, so that nothing of it need be imported."""
    package = find_spec("vaderSentiment")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("vaderSentiment is missing: it comes with the project's 'train' extra")
    path = Path(package.submodule_search_locations[0], "vader_lexicon.txt")
    lines = path.read_text(encoding="utf-8").splitlines()
    return {word: float(valence) for word, valence, *_ in (line.split("\t") for line in lines)}


def spread(valence: float) -> tuple[float, ...]:
    """Say how a word of this valence spreads over the five stars."""
    return next(shares for bound, shares in STARS_OF_VALENCE if valence <= bound)


class Writer:
    """Writes reviews of a given number of stars."""

    def __init__(self, phrases: dict[str, list[str]], lexicon: dict[str, float], source: Source) -> None:
        self._phrases = phrases
        self._source = source
        self._clauses = {star: Weighted(shares) for star, shares in CLAUSES_OF_STAR.items()}
        self._counts = Weighted({str(count): share for count, share in CLAUSE_COUNTS.items()})
        self._typing = Weighted(TYPING)
        left_out = {word for name in ("thing", "part", "person", "unsuitable") for word in phrases[name]}
        words = {
            word: valence
            for word, valence in lexicon.items()
            if re.fullmatch(r"[a-z][a-z'-]{1,14}", word) and word not in left_out
        }
        self._words = [Weighted({word: spread(valence)[star - 1] for word, valence in words.items()}) for star in STARS]
        faces = {
            word: valence
            for word, valence in lexicon.items()
            if not re.search(r"[a-z0-9]", word, re.IGNORECASE) and len(word) <= 3
        }
        self._faces = [Weighted({face: spread(valence)[star - 1] for face, valence in faces.items()}) for star in STARS]

    def write(self, star: int) -> str:
        """Write one review, on one line, as somebody may have typed it."""
        count = int(self._counts.draw(self._source))
        clauses = [self._fill(self._clause(star, self._clauses[star].draw(self._source)), star) for _ in range(count)]
        return self._type(clauses, star)

    def write_word(self, star: int) -> str:
        """Write one opinion word alone, in one of the forms that people give it."""
        tone = ("neg2", "neg1", "meh", "pos1", "pos2")[star - 1]
        word = (
            self._source.choose(self._phrases[tone])
            if self._source.chance(0.7)
            else self._words[star - 1].draw(self._source)
        )
        case = self._source.weigh((0.3, 0.75, 1.0))
        word = (word, word[0].upper() + word[1:], word.upper())[case]
        return word + self._source.choose(("", "", ".", ".", "!", "!", "!!", "!!!", ",", "..."))

    def write_plain(self) -> str:
        """Write a line that holds no opinion."""
        count = 1 + self._source.weigh((1.0, 2.0))
        clauses = [self._clause(3, self._source.choose(("fact", "chatter"))) for _ in range(count)]
        return self._type([self._fill(clause, 3) for clause in clauses], 0)

    def write_unknown(self) -> str:
        """Write words that nobody knows, so that the model has no opinion where it knows nothing."""
        letters = "abcdefghijklmnopqrstuvwxyz0123456789"
        return " ".join(
            "".join(self._source.choose(letters) for _ in range(12))
            for _ in range(1 + self._source.weigh((1.0, 2.0, 3.0)))
        )

    def _clause(self, star: int, kind: str) -> str:  # noqa: PLR0911 - a table of kinds
        """Choose a clause of this kind; its slots are still open."""
        choose = self._source.choose
        phrases = self._phrases
        if kind in "12345":
            return choose(phrases[f"star {kind}"])
        if kind == "fact":
            return choose(phrases["fact"])
        if kind == "chatter":
            return " ".join(choose(phrases["everyday"]) for _ in range(2 + self._source.weigh((1, 2, 3, 4, 5))))
        if kind == "lexicon":
            return choose(phrases["lexicon frame"])
        if kind == "mixed":
            pair = ["pos1", "neg1"] if self._source.chance(0.6) else ["pos2", "neg1"]
            if self._source.chance(0.5):
                pair.reverse()
            return f"{self._frame(pair[0])} {choose(phrases['contrast'])} {self._frame(pair[1])}"
        if kind == "but neg":
            return f"{self._frame('pos1')} {choose(phrases['contrast'])} {self._frame('neg1')}"
        if kind == "but pos":
            return f"{self._frame('neg1', 'a bit')} {choose(phrases['contrast'])} {self._frame('pos1')}"
        if kind == "no pos":
            return self._frame("pos1" if self._source.chance(0.7) else "pos2", choose(phrases["negator"]))
        if kind == "no neg":
            return self._frame("neg1" if self._source.chance(0.7) else "neg2", choose(phrases["negator"]))
        degree, _, tone = kind.rpartition(" ")
        if degree == "very" or (degree == "" and tone.endswith("2") and self._source.chance(0.5)):
            degree = choose(phrases["intensifier"])
        elif degree == "a bit":
            degree = choose(phrases["downtoner"])
        return self._frame(tone, degree)

    def _frame(self, tone: str, degree: str = "") -> str:
        """Put a slot for an adjective into a frame."""
        return self._source.choose(self._phrases["frame"]).replace("{a}", f"{degree} {{{tone}}}".strip())

    def _fill(self, clause: str, star: int) -> str:
        """Fill the slots of a clause, and those of what fills them."""
        while True:
            slot = re.search(r"\{(\w+)\}", clause)
            if slot is None:
                return clause
            name = slot[1]
            word = self._words[star - 1].draw(self._source) if name == "w" else self._source.choose(self._phrases[name])
            clause = clause[: slot.start()] + word + clause[slot.end() :]

    def _type(self, clauses: list[str], star: int) -> str:
        """Join the clauses as people type them."""
        source = self._source
        typing = self._typing.draw(source)
        pieces = []
        starts = True
        for number, clause in enumerate(clauses):
            last = number == len(clauses) - 1
            end = self._ending(star, last)
            word = clause
            if typing == "sentences" and starts:
                word = word[0].upper() + word[1:]
            pieces.append(word + end)
            starts = end.strip() in (".", "!", "...", "!!!", "?")
        line = "".join(pieces).strip()
        if star and source.chance(0.05):
            faces = self._phrases[f"face {star}"]
            line += " " + (source.choose(faces) if source.chance(0.6) else self._faces[star - 1].draw(source))
        if source.chance(0.12):
            line = line.replace("'", "\u2019")
        elif source.chance(0.1):
            line = line.replace("'", "")
        if typing == "capitals":
            return line.upper()
        if typing == "bare":
            return " ".join(re.sub(r"[.,!?;:]", " ", line.lower()).split())
        if typing == "lower":
            return line.lower()
        if typing == "normalised":
            return " ".join(re.sub(r"([.,!?;:'()\u2019])", r" \1 ", line.lower()).split())
        return line

    def _ending(self, star: int, last: bool) -> str:
        """Choose what ends a clause: a full stop, a comma, an exclamation mark or nothing."""
        if last:
            ends = ["", ".", ".", ".", "!", "!!!" if star in (1, 5) else "."]
        else:
            ends = [". ", ". ", ". ", ", ", ", ", " and ", "! " if star in (1, 5) else ". ", "; ", " ", "... "]
        return self._source.choose(ends)


def write_text(path: Path) -> None:
    """Write the training text: one labelled line a review, in no order."""
    source = Source(SEED)
    writer = Writer(read_phrases(), read_lexicon(), source)
    kinds = Weighted(LINE_KINDS)
    without_opinion = list(accumulate(STARS_WITHOUT_OPINION))
    with path.open("w", encoding="utf-8") as file:
        for _ in range(LINES):
            kind = kinds.draw(source)
            star = STARS[source.weigh((1, 2, 3, 4, 5))]
            label = star
            if kind == "plain":
                line = writer.write_plain()
                label = STARS[source.weigh(without_opinion)]
            elif kind == "unknown":
                line = writer.write_unknown()
                label = STARS[source.weigh(without_opinion)]
            elif kind == "word":
                line = writer.write_word(star)
            else:
                line = writer.write(star)
                if source.chance(NEIGHBOUR_FRACTION):
                    label = min(5, max(1, star + (1 if source.chance(0.5) else -1)))
            file.write(f"__label__{label} {' '.join(line.split())}\n")


def train(text: Path, output: Path) -> None:
    """Train on the text and write the quantized model."""
    import fasttext_pybind as binding

    arguments = binding.args()
    arguments.input = str(text)
    arguments.model = binding.model_name.supervised
    arguments.loss = binding.loss_name.softmax
    arguments.dim = DIMENSIONS
    arguments.bucket = BUCKETS
    arguments.wordNgrams = 2
    arguments.minCount = 3
    arguments.minn = arguments.maxn = 0
    arguments.epoch = EPOCHS
    arguments.lr = LEARNING_RATE
    arguments.thread = 1
    arguments.verbose = 0
    model = binding.fasttext()
    binding.train(model, arguments)
    kept = prune(model)
    # The text to retrain on, whether to quantize the output, rows kept, whether to retrain, its epochs, rate, threads
    # and verbosity, dimensions a code, whether to quantize the norms.
    model.quantize(str(text), False, kept, False, 1, 0.1, 1, 0, 2, True)
    model.saveModel(str(output))


def prune(model: Any) -> int:
    """Zero the rows that are not kept, scale the others, and return how many rows are left.

    fastText's own cut-off takes words and pairs by one measure, under which pairs crowd out words.
    """
    words, _ = model.getVocab("strict")
    rows = np.array(model.getInputMatrix())
    norms = np.linalg.norm(rows, axis=1)
    kept = np.zeros(len(rows), dtype=bool)
    kept[np.argsort(-norms[: len(words)], kind="stable")[:WORDS_KEPT]] = True
    kept[np.argsort(-norms[len(words) :], kind="stable")[:PAIRS_KEPT] + len(words)] = True
    kept[words.index("</s>")] = True
    rows[~kept] = 0
    rows[len(words) :] *= PAIR_SCALE
    model.setMatrices(rows, np.array(model.getOutputMatrix()) * np.float32(OUTPUT_SCALE))
    return int(kept.sum())


def main() -> None:
    """Generate the text, train, and write the model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the model goes (default: beside this file)")
    parser.add_argument("--text", type=Path, help="keep the training text here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = options.text or Path(folder, "reviews.txt")
        write_text(text)
        train(text, options.output)


if __name__ == "__main__":
    main()
