"""The two doors to ``POST /inferreview``: a Falcon resource, and a WSGI entry that answers the plain case first."""

from collections.abc import Iterable
from typing import Any, final

import falcon

from pyserve._inference import Classifier

ROUTE: str

class InferReview:
    """The Falcon resource of the route."""

    def __init__(self, classifier: Classifier, max_body: int, max_texts: int) -> None: ...
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer the texts of a form, a JSON document or a plain body."""

@final
class Entry:
    """The WSGI application (PEP 3333).

    Args:
        classifier: what answers.
        falcon_app: what every request goes to that is not a plain form for the hot route.
        max_body: the most bytes that a body may have.
        max_texts: the most texts that a request may hold.
    """

    @property
    def falcon_app(self) -> falcon.App[Any, Any]:
        """The application behind the hot route."""

    @property
    def classifier(self) -> Classifier:
        """What answers."""

    @property
    def max_body(self) -> int:
        """The most bytes that a body may have."""

    def __init__(
        self, classifier: Classifier, falcon_app: falcon.App[Any, Any], max_body: int, max_texts: int
    ) -> None: ...
    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]: ...
    def handle(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request; the same as calling the object, without the cost of its ``tp_call``."""
