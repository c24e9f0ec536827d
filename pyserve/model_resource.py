"""The resource that says which model is served."""

import json
from collections.abc import Mapping

import falcon

ROUTE = "/model"


class ModelResource:
    """Answers ``GET /model``.

    Args:
        description: what is answered, as ``pyserve.model.describe_model`` returns it.
    """

    def __init__(self, description: Mapping[str, object]) -> None:
        # A label may hold surrogates for bytes that are no UTF-8: as JSON escapes they survive the wire.
        content = json.dumps(dict(description), ensure_ascii=False, separators=(",", ":"))
        self._data = content.encode("utf-8", "backslashreplace")

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the description."""
        resp.data = self._data
        resp.content_type = falcon.MEDIA_JSON

    on_head = on_get
