"""Turn a request body into texts, texts into predictions, and predictions into JSON."""

from collections.abc import Callable, Iterable, Sequence
from typing import final

from pyserve._native import NativeEngine
from pyserve.explanation import Explanation

LABEL_PREFIX: str

class EngineError(RuntimeError):
    """The engine failed on a text. The message is the engine's own and never holds the text."""

@final
class Classifier:
    """A supervised model together with how its labels are shown.

    ``load_model`` makes one. It holds no state of a request and may be shared by threads.

    Args:
        predict: the engine, called as ``predict(line, k, threshold, "surrogateescape")`` with bytes that end in their
            only line feed; it returns at most ``k`` pairs of confidence and raw label, best first. The bound method
            ``predict`` of fastText's pybind11 binding is one. A ``NativeEngine`` is called without a detour.
        labels: the raw labels of the model, distinct; for a ``NativeEngine`` in its order.
        label_format: how a label is shown, with one ``{}`` for its name; by default ``"{} star"`` where all names are
            numbers, else ``"{}"``.
        label_prefix: what a raw label starts with and its name does not.

    Raises:
        ValueError: there is no label, one stands twice, or the format does not hold ``{}`` once.
    """

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels as they are shown, in the order of the model."""

    @property
    def engine(self) -> str:
        """What answers: ``native``, or else ``binding``."""

    def __init__(
        self,
        predict: Callable[[bytes, int, float, str], list[tuple[float, str]]] | NativeEngine,
        labels: Iterable[str],
        *,
        label_format: str | None = None,
        label_prefix: str = ...,
    ) -> None: ...
    def predict(self, text: str | bytes, k: int = 1, threshold: float = 0.0) -> list[tuple[str, float]]:
        """Classify a text.

        Args:
            text: any text; bytes are taken as UTF-8.
            k: how many labels to give, from 1 to the number of labels.
            threshold: the least confidence a label must have, from 0 to 1.

        Returns:
            At most ``k`` pairs of label and confidence (a float32, which may exceed 1 by 1e-5), best first.

        Raises:
            EngineError: the engine failed.
            TypeError: the text is neither str nor bytes.
            ValueError: ``k`` or ``threshold`` is out of range.
        """

    def predict_many(
        self, texts: Iterable[str | bytes], k: int = 1, threshold: float = 0.0, *, threads: int = 1
    ) -> list[list[tuple[str, float]]]:
        """Classify many texts: a list of what ``predict`` returns for each, in their order.

        Args:
            texts: as in ``predict``.
            k: as in ``predict``.
            threshold: as in ``predict``.
            threads: how many threads share the work, from 1 to 256; more than one for the native engine only, which
                lets other Python threads run meanwhile.

        Raises:
            EngineError: as in ``predict``.
            TypeError: as in ``predict``, or the texts are a single one.
            ValueError: as in ``predict``, or ``threads`` is out of range.
        """

    def explain(self, text: str | bytes) -> Explanation:
        """Say what the best label of a text rests on. For the native engine only.

        The score of a label is a product with the mean of the rows of the text's words, subwords and word n-grams, and
        so a sum over them: each token's share is exact up to rounding. It is computed apart from predictions, slowly.

        Raises:
            EngineError: the engine failed.
            TypeError: the text is neither str nor bytes.
            ValueError: the binding answers, or the model's loss is hs, whose labels have no scores of their own.
        """

    def answer(
        self, body: bytes, content_type: str | None = None, *, query: bytes = b"", max_texts: int = 1000
    ) -> bytes:
        """Answer a request's body with the JSON that goes over the wire.

        Args:
            body: a form, a JSON object or a plain text, by the content type.
            content_type: ``application/x-www-form-urlencoded`` (also where there is none), ``application/json`` or
                ``text/plain``.
            query: the query string; its fields stand in for those that the body lacks.
            max_texts: the most texts that are allowed.

        Returns:
            A compact JSON object from label to confidence, best first; for several texts an array of such objects.

        Raises:
            EngineError: the engine failed.
            LookupError: the content type is none of the three, or its charset is not UTF-8.
            ValueError: there is no text, or something is malformed or out of range; the message says what is allowed.
        """

def parse_form(form: bytes) -> tuple[list[bytes], str | None, str | None]:
    """Parse a body of ``application/x-www-form-urlencoded``, as browsers send it and Falcon decodes it.

    Returns:
        The values of ``text`` as lines, in their order, and the values of ``k`` and ``threshold``, or None.

    Raises:
        ValueError: a text is empty, or ``k`` or ``threshold`` stands more than once.
    """

def parse_json(body: bytes) -> tuple[list[bytes], object, object]:
    """Parse a JSON object in UTF-8 (RFC 8259).

    Returns:
        The value of ``text``, a string or a list of strings, as lines, and those of ``k`` and ``threshold``, or None.

    Raises:
        ValueError: the body is no such object, or a text is empty.
    """

def format_line(text: str | bytes) -> bytes:
    """Return a text as the line that the engine reads: UTF-8 with exactly one line feed, its last byte."""

def format_number(number: float) -> bytes:
    """Return a number, taken as float32, as JSON: at most 10 decimals, no trailing zeros.

    Raises:
        EngineError: it is not finite.
    """

def format_reply(pairs: Sequence[tuple[str, float]]) -> bytes:
    """Return pairs of label and confidence as one compact JSON object in UTF-8, in the order given.

    Raises:
        EngineError: a confidence is not finite.
    """
