"""The inputs of every benchmark, named once."""

import itertools
import random
import re
from pathlib import Path
from urllib.parse import urlencode

SHORT_TEXT = "awesome product"
"""The text of the article whose measurements are repeated."""

PRODUCT_TEXT = "I love this product"

REVIEW = (
    "I bought this radio for my kitchen last spring, and at first it was great: clear sound, easy to set up, and it "
    "looks nice next to the toaster. After about six months the volume knob became loose and now it crackles whenever "
    "someone walks past it. Customer service was friendly but offered nothing except a discount on a new one. For the "
    "price I expected more. Two stars, because it still tells the time!"
)
"""A review of the average length of an Amazon review, as people write them: cased, punctuated, not tokenized."""

MEDIAN_LENGTH = 360
MEAN_LENGTH = 410
LONGEST = 1000
SHORTEST = 30

# A gamma distribution that, kept within SHORTEST and LONGEST, has the median and the mean above.
LENGTH_SHAPE = 1.9
LENGTH_SCALE = 252.0

SENTENCE_ENDS = (". ", "! ", "? ", "... ")
SENTENCE_END_WEIGHTS = (84, 9, 4, 3)


def encode_form(text: str) -> bytes:
    """Return the body of a form that holds the text."""
    return urlencode({"text": text}).encode()


def read_vocabulary(model_path: str | Path) -> tuple[list[str], list[int]]:
    """Return the words of a model that stand between spaces in prose, and how often each was seen in training."""
    import fasttext_pybind

    model = fasttext_pybind.fasttext()
    model.loadModel(str(model_path))
    words, counts = model.getVocab("replace")
    vocabulary = {
        word: int(count)
        for word, count in zip(words, counts, strict=True)
        if re.fullmatch(r"[^\W_]{2,}(-[^\W_]+)*|[ai]", word) and len(word) <= 24
    }
    if not vocabulary:
        raise ValueError("the vocabulary of the model holds no words")
    return list(vocabulary), list(vocabulary.values())


def generate_reviews(model_path: str | Path, count: int = 999, *, seed: int = 2018) -> list[str]:
    """Generate distinct reviews from the vocabulary of a model, with the lengths of Amazon reviews.

    Words are drawn as often as the model saw them in training, so look-ups hit and miss about as they do on real text;
    case and punctuation are those of prose. The same arguments give the same reviews.

    Args:
        model_path: the model that will be asked about them.
        count: how many.
        seed: another one gives other reviews.

    Raises:
        ValueError: the model's vocabulary holds no words.
    """
    words, counts = read_vocabulary(model_path)
    cumulative = list(itertools.accumulate(counts))
    generator = random.Random(seed)  # noqa: S311
    reviews: dict[str, None] = {}
    while len(reviews) < count:
        reviews[generate_review(generator, words, cumulative)] = None
    return list(reviews)


def generate_review(generator: random.Random, words: list[str], cumulative: list[int]) -> str:
    """Generate one review."""
    length = 0.0
    while not SHORTEST <= length <= LONGEST:
        length = generator.gammavariate(LENGTH_SHAPE, LENGTH_SCALE)
    parts: list[str] = []
    size = 0
    starts_sentence = True
    while True:
        word = generator.choices(words, cum_weights=cumulative)[0]
        if starts_sentence or word == "i" or generator.random() < 0.02:
            word = word.capitalize()
        if size + len(word) + 1 > length and parts:
            break
        chance = generator.random()
        starts_sentence = chance < 0.07
        if starts_sentence:
            end = generator.choices(SENTENCE_ENDS, SENTENCE_END_WEIGHTS)[0]
        else:
            end = ", " if chance < 0.13 else " "
        parts += word, end
        size += len(word) + len(end)
    parts[-1] = "."
    return "".join(parts)[:LONGEST]
