"""The starter model is the one that models/README.md describes."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pyserve import Classifier, load_model
from pyserve.model import verify_model
from tests.support import load_binding

ROOT = Path(__file__).resolve().parent.parent
STARTER = ROOT / "models" / "starter.ftz"
HELD_OUT = ROOT / "tests" / "data" / "stars_held_out.tsv"
TUNING = ROOT / "tests" / "data" / "stars_tuning.tsv"
MOST_BYTES = 500_000


def read_sentences(path: Path) -> list[tuple[int, str]]:
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return [(int(stars), text) for stars, text in rows]


def best_stars(classifier: Classifier, text: str) -> int:
    return int(classifier.predict(text)[0][0].removesuffix(" star"))


def measure(guesses: list[tuple[int, int]]) -> tuple[str, str, str]:
    """Return right, at most one star off, and mean error, as the README writes them."""
    errors = [abs(stars - guess) for stars, guess in guesses]
    right, near = (100 * sum(error <= most for error in errors) / len(errors) for most in (0, 1))
    return f"{right:.1f} %", f"{near:.1f} %", f"{sum(errors) / len(errors):.2f}"


def documented(model: str) -> tuple[str, ...]:
    """Return the figures of a line of the README's table."""
    readme = (ROOT / "models" / "README.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| {re.escape(model)} \|(.+)\|$", readme, re.MULTILINE)
    assert row, model
    return tuple(cell.strip() for cell in row[1].split("|"))


@pytest.fixture(scope="module")
def starter() -> Classifier:
    return load_model(STARTER)


def test_held_out_sentences_are_many_and_balanced() -> None:
    sentences = read_sentences(HELD_OUT)
    assert len(sentences) >= 200
    assert len({text for _, text in sentences}) == len(sentences)
    assert len({sum(stars == wanted for stars, _ in sentences) for wanted in range(1, 6)}) == 1
    assert not {text for _, text in sentences} & {text for _, text in read_sentences(TUNING)}


def test_starter_is_small_and_intact() -> None:
    found = verify_model(STARTER)
    assert found.info.size <= MOST_BYTES
    assert sorted(found.info.labels) == [f"__label__{stars}" for stars in range(1, 6)]
    assert found.golden


def test_starter_is_as_good_as_documented(starter: Classifier) -> None:
    guesses = [(stars, best_stars(starter, text)) for stars, text in read_sentences(HELD_OUT)]
    assert measure(guesses) == documented("starter, text as typed")


def test_baseline_is_as_documented() -> None:
    guesses = [(stars, 3) for stars, _ in read_sentences(HELD_OUT)]
    assert measure(guesses) == documented("always 3 stars")


def normalise(text: str) -> str:
    return re.sub(r"([.,!?;:'()\"/])", r" \1 ", text.lower())


def test_real_model_is_as_good_as_documented(real_classifier: Classifier) -> None:
    sentences = read_sentences(HELD_OUT)
    typed = [(stars, best_stars(real_classifier, text)) for stars, text in sentences]
    assert measure(typed) == documented("amazon_review_full, text as typed")
    normalised = [(stars, best_stars(real_classifier, normalise(text))) for stars, text in sentences]
    assert measure(normalised) == documented("amazon_review_full, text normalised as in its training")


@pytest.mark.parametrize(
    ("texts", "least", "most"),
    [
        (["I love this product", "I love this product!", "Excellent!", "EXCELLENT", "wonderful", "<3"], 5, 5),
        (["Awful.", "awful", "I hate it", "don't buy", "DO NOT BUY IT!", "Do not buy this product!", "broken"], 1, 1),
        (["it's ok", "average", "nothing special"], 3, 3),
        (["not good", "I don't like it", "didn't work well", "wasn't good"], 1, 2),
        (["no problems", "never fails", "not bad at all"], 4, 5),
    ],
)
def test_starter_answers_plain_opinions(starter: Classifier, texts: list[str], least: int, most: int) -> None:
    stars = {text: best_stars(starter, text) for text in texts}
    assert all(least <= guess <= most for guess in stars.values()), stars


@pytest.mark.parametrize("text", [" ", "\n", "?!?!", "12345", "qwzx vbnm plkj", "Привет, как дела", "\0", "-" * 1000])
def test_starter_is_unsure_where_it_knows_nothing(starter: Classifier, text: str) -> None:
    (_, confidence), *_ = starter.predict(text)
    assert confidence < 0.5


@pytest.fixture(scope="module")
def trainer() -> ModuleType:
    pytest.importorskip("vaderSentiment")
    spec = importlib.util.spec_from_file_location("train_starter", ROOT / "models" / "train_starter.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def training_text(trainer: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("starter") / "reviews.txt"
    trainer.write_text(path)
    return path


@pytest.mark.slow
def test_training_again_gives_the_same_predictions(
    trainer: ModuleType, training_text: Path, starter: Classifier, tmp_path: Path
) -> None:
    trainer.train(training_text, tmp_path / "first.ftz")
    trainer.train(training_text, tmp_path / "second.ftz")
    assert (tmp_path / "first.ftz").read_bytes() == (tmp_path / "second.ftz").read_bytes()
    rebuilt = load_model(tmp_path / "first.ftz")
    for _, text in read_sentences(HELD_OUT) + read_sentences(TUNING):
        expected = dict(starter.predict(text, k=5))
        assert dict(rebuilt.predict(text, k=5)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_held_out_sentences_are_not_in_the_training_text(training_text: Path) -> None:
    def words(text: str) -> tuple[str, ...]:
        return tuple(re.findall(r"[a-z0-9']+", text.lower()))

    lines = [words(line.split(" ", 1)[1]) for line in training_text.read_text(encoding="utf-8").splitlines()]
    whole = set(lines)
    assert {text for _, text in read_sentences(HELD_OUT) if words(text) in whole} == {"Superb.", "Adequate."}
    runs = {line[i : i + 5] for line in lines for i in range(len(line) - 4)}
    own = [run[i : i + 5] for _, text in read_sentences(HELD_OUT) for run in [words(text)] for i in range(len(run) - 4)]
    assert sum(run in runs for run in own) <= 0.02 * len(own)


def test_starter_is_read_by_fasttext_itself(starter: Classifier) -> None:
    model = load_binding(STARTER)
    [(confidence, label)] = model.predict("I love this product\n", 1, 0.0, "strict")
    assert [(label.removeprefix("__label__") + " star", confidence)] == starter.predict("I love this product")
