"""The wiring of the Falcon application."""

import json
import logging
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING

import falcon

from pyserve._inference import Classifier, EngineError
from pyserve._resource import ROUTE, Entry, InferReview
from pyserve.model_resource import ROUTE as MODEL_ROUTE
from pyserve.model_resource import ModelResource

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger("pyserve")

DEFAULT_MAX_BODY = 1024 * 1024
DEFAULT_MAX_TEXTS = 1000


def create_app(
    classifier: Classifier,
    *,
    max_body: int = DEFAULT_MAX_BODY,
    max_texts: int = DEFAULT_MAX_TEXTS,
    description: Mapping[str, object] | None = None,
) -> Entry:
    """Create the WSGI application that serves a classifier.

    Args:
        classifier: what answers, as ``load_model`` returns it.
        max_body: the most bytes that a request's body may have; more are answered with 413.
        max_texts: the most texts that a request may hold; more are answered with 400.
        description: what ``GET /model`` answers, as ``describe_model`` returns it; without it there is no such path.

    Returns:
        A WSGI application (PEP 3333), for any server. Its ``falcon_app`` is the ``falcon.App`` behind the hot route.

    Raises:
        ValueError: a limit is below 1.
    """
    if max_body < 1 or max_texts < 1:
        raise ValueError("max_body and max_texts must be at least 1")
    app = falcon.App()
    app.add_route(ROUTE, InferReview(classifier, max_body, max_texts))
    if description is not None:
        app.add_route(MODEL_ROUTE, ModelResource(description))
    app.add_error_handler(Exception, handle_failure)
    app.set_error_serializer(serialize_error)
    return Entry(classifier, app, max_body, max_texts)


def handle_failure(req: falcon.Request, resp: falcon.Response, error: Exception, params: dict[str, object]) -> None:
    """Answer 500 for a failure of ours, and log where it came from."""
    # An exception's message may quote the text of a user; that of an EngineError never does.
    cause = str(error) if isinstance(error, EngineError) else type(error).__name__
    request_id = req.env.get("pyserve.request_id")
    known = {"request_id": request_id} if request_id else {}
    logger.error("a request failed: %s\n%s", cause, format_frames(error.__traceback__), extra=known)
    raise falcon.HTTPInternalServerError(description="An internal server error has occurred")


def format_frames(trace: "TracebackType | None") -> str:
    """Return the frames of a traceback, without values."""
    return "".join(traceback.format_tb(trace)).rstrip()


def serialize_error(
    req: falcon.Request,
    resp: falcon.Response,
    error: falcon.HTTPError,
    *,
    elsewhere: str = f"texts are answered at POST {ROUTE}",
) -> None:
    """Write an error as ``{"Error": …}``."""
    message = error.description
    if message is None and error.status_code == 404:
        message = f"there is nothing at this path, {elsewhere}"
    elif message is None and error.status_code == 405:
        message = f"the method is not allowed here, allowed are {resp.get_header('Allow')}"
    resp.data = json.dumps({"Error": message or error.title}, ensure_ascii=False, separators=(",", ":")).encode()
    resp.content_type = falcon.MEDIA_JSON
