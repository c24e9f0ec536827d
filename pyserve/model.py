"""Find and load a model; the only importer of fastText."""

from pathlib import Path

from pyserve._inference import Classifier


class ModelError(ValueError):
    """A file cannot be served; the message says why."""


def load_model(path: str | Path, *, label_format: str | None = None) -> Classifier:
    """Load a supervised fastText model.

    Args:
        path: a ``.ftz`` or ``.bin`` file.
        label_format: how a label is shown, with one ``{}`` for its name; by default ``"{} star"`` where all labels are
            numbers, else ``"{}"``.

    Raises:
        ModelError: the file is missing, is not a fastText model or is not a supervised one.
    """
    import fasttext_pybind

    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no model file {path.name}")
    model = fasttext_pybind.fasttext()
    try:
        model.loadModel(str(path))
    except (MemoryError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path.name} is not a fastText model: {error}") from None
    if model.getArgs().model != fasttext_pybind.model_name.supervised:
        raise ModelError(f"{path.name} is not a supervised model: it holds word vectors and no labels")
    labels, _ = model.getLabels("surrogateescape")
    return Classifier(model.predict, labels, label_format=label_format)


def find_model(directory: Path = Path("models")) -> Path:
    """Return the best model file of a directory.

    Raises:
        ModelError: there is none.
    """
    preferred = directory / "amazon_review_full.ftz"
    candidates = [preferred, *sorted(directory.glob("*.ftz")), *sorted(directory.glob("*.bin"))]
    for path in candidates:
        if path.is_file():
            return path
    raise ModelError(f"there is no model in {directory.name}/, name one with --model")
