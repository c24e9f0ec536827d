"""Models, classifiers and requests that the tests share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyserve import Classifier, load_model
from tests.native_recipes import make_model
from tests.support import Client, train

ROOT = Path(__file__).resolve().parent.parent

STARS = {
    "__label__1": "awful terrible waste broken refund never again",
    "__label__2": "poor weak disappointing thin cheap",
    "__label__3": "okay average fine nothing special",
    "__label__4": "good solid nice recommend works",
    "__label__5": "great love perfect excellent best café naïve",
}

# Labels that no reply may get wrong.
HOSTILE = {
    '__label__"quoted"': "alpha beta",
    "__label__back\\slash": "gamma delta",
    "__label__tab\x1bescape": "epsilon zeta",
    "__label__日本語": "eta theta",
    "__label__{}": "iota kappa",
    "__label__</script>": "lambda mu",
    "__label__": "nu xi",
    "__label__a,b:c": "omicron pi",
}


@pytest.fixture(scope="session")
def star_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of five stars, with word bigrams."""
    return train(tmp_path_factory.mktemp("models") / "stars.bin", STARS, wordNgrams=2)


@pytest.fixture(scope="session")
def hostile_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose labels need escaping."""
    return train(tmp_path_factory.mktemp("models") / "hostile.bin", HOSTILE)


@pytest.fixture(scope="session")
def train_recipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes a model of the native engine's tests, once for all of them."""
    directory = tmp_path_factory.mktemp("recipes")

    def train_once(name: str) -> Path:
        path = directory / f"{name}.model"
        return path if path.exists() else make_model(path, name)

    return train_once


@pytest.fixture(scope="session")
def real_model() -> Path:
    """amazon_review_full.ftz, where it is at hand."""
    path = Path(os.environ.get("PYSERVE_TEST_MODEL", ROOT / "models" / "amazon_review_full.ftz"))
    if not path.is_file():
        pytest.skip("needs amazon_review_full.ftz in models/ or named by PYSERVE_TEST_MODEL")
    return path


@pytest.fixture(scope="session")
def classifier(star_model: Path) -> Classifier:
    return load_model(star_model)


@pytest.fixture(scope="session")
def hostile_classifier(hostile_model: Path) -> Classifier:
    return load_model(hostile_model)


@pytest.fixture(scope="session")
def real_classifier(real_model: Path) -> Classifier:
    return load_model(real_model)


@pytest.fixture
def client(classifier: Classifier) -> Client:
    return Client(classifier)
