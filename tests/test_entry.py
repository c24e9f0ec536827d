"""The two doors to the hot route answer byte-identically."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyserve import Classifier, create_app
from tests.support import FORM, call, make_environ

BODIES = [
    b"text=great",
    b"text=great&k=3",
    b"text=a&text=b",
    b"k=3&threshold=0.01&text=caf%C3%A9+%00%0a</s>",
    b"text=" + b"%F0%9F%98%80" * 2000,
    b"text=" + b"a+" * 600_000,
    b"",
    b"text=",
    b"text=a&k=9",
    b"text=a&threshold=2",
    b"\xff\xfe",
    b'{"text": "great"}',
]

MEDIA_TYPES = [FORM, f"{FORM};charset=UTF-8", FORM.upper(), "", "application/json", "image/png"]
LENGTHS = ["right", "missing", "0010", "1", "99", "+5", "", "\xb2", "9" * 5000, "0" * 20 + "10"]


def both(classifier: Classifier, environ: dict[str, Any]) -> tuple[object, object]:
    """The replies of the entry and of Falcon alone."""
    app = create_app(classifier, max_texts=3)
    body = environ["wsgi.input"].getvalue()
    again = {**environ, "wsgi.input": type(environ["wsgi.input"])(body)}
    return call(app, environ), call(app.falcon_app, again)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:24]))
@pytest.mark.parametrize("content_type", [*MEDIA_TYPES, None])
@pytest.mark.parametrize("query", ["", "text=query&k=2", "\xe9&text=%C3%A9"])
@pytest.mark.parametrize("length", LENGTHS, ids=lambda length: length[:20])
def test_entry_like_falcon(
    classifier: Classifier, body: bytes, content_type: str | None, query: str, length: str
) -> None:
    environ = make_environ(body, content_type, query=query)
    if length != "right":
        environ["CONTENT_LENGTH"] = length
    if length == "missing":
        del environ["CONTENT_LENGTH"]
    entry, falcon = both(classifier, environ)
    assert entry == falcon


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "post", "BREW"])
@pytest.mark.parametrize("path", ["/inferreview", "/inferreview/", "/", "/nothing"])
def test_entry_like_falcon_routes(classifier: Classifier, method: str, path: str) -> None:
    entry, falcon = both(classifier, make_environ(b"text=great", method=method, path=path))
    assert entry == falcon


pieces = [b"text=", b"&", b"k=", b"2", b"threshold=", b"0.5", b"%", b"+", b"great", b"\xff", b"%C3%A9", b"="]


@given(
    body=st.lists(st.sampled_from(pieces)).map(b"".join),
    query=st.lists(st.sampled_from(["text=", "&", "k=1", "threshold=0", "good", "%E9", "\xe9"])).map("".join),
)
@settings(max_examples=300)
def test_entry_like_falcon_generated(classifier: Classifier, body: bytes, query: str) -> None:
    entry, falcon = both(classifier, make_environ(body, query=query))
    assert entry == falcon


def test_entry_answers_the_hot_route_itself(classifier: Classifier) -> None:
    app = create_app(classifier)

    def forbidden(*_: object) -> None:
        raise AssertionError("Falcon was called")

    entry = type(app)(classifier, forbidden, 1000, 10)
    assert call(entry, make_environ(b"text=great")) == call(app, make_environ(b"text=great"))
    with pytest.raises(AssertionError, match="Falcon was called"):
        call(entry, make_environ(b"text="))


def test_extension_is_loaded() -> None:
    from pyserve import _inference, _resource

    for module in (_inference, _resource):
        assert module.__file__.endswith(".so")
        # `make test-sanitize` must not test the plain build.
        is_sanitized = b"__asan_init" in Path(module.__file__).read_bytes()
        assert is_sanitized == ("PYSERVE_SANITIZE" in os.environ)
