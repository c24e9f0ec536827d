"""The wire contract of POST /inferreview, through the whole WSGI application."""

import io
import json
import logging
from typing import Any
from wsgiref.validate import validator

import pytest

from pyserve import Classifier, create_app
from tests.support import FORM, Client, call, make_environ

JSON = "application/json"
MANDATORY = "param 'text' is mandatory"


def error(message: str) -> dict[str, str]:
    return {"Error": message}


def test_form(client: Client, classifier: Classifier) -> None:
    reply = client(b"text=great+love")
    label, confidence = classifier.predict("great love")[0]
    assert reply.status == "200 OK"
    assert reply.header("content-type") == JSON
    assert reply.header("content-length") == str(len(reply.body))
    assert json.loads(reply.body) == {label: round(confidence, 10)}
    assert b" " not in reply.body.replace(b" star", b"")


@pytest.mark.parametrize(
    ("body", "content_type", "query"),
    [
        (b"text=great+love", FORM, ""),
        (b"text=great+love", None, ""),
        (b"text=great+love", "Application/X-WWW-Form-URLEncoded; charset=UTF-8", ""),
        (b"text=great%20love&other=1", FORM, "text=awful"),
        (b"", None, "text=great+love"),
        (b"", "image/png", "text=great+love"),
        (b"other=1", FORM, "text=great%20love"),
        (b'{"text": "great love"}', JSON, ""),
        (b'{"text": "great love"}', "application/json; charset=utf-8", "text=awful"),
        (b'{"text": null}', JSON, "text=great+love"),
        (b"great love", "text/plain", ""),
        (b"great love", 'text/plain;charset="utf-8"', "text=awful"),
    ],
)
def test_one_text(client: Client, body: bytes, content_type: str | None, query: str) -> None:
    reply = client(body, content_type, query=query)
    assert (reply.code, reply.body) == (200, client(b"text=great+love").body)


@pytest.mark.parametrize(
    ("body", "content_type", "query"),
    [
        (b"text=great&text=awful", FORM, ""),
        (b"", None, "text=great&text=awful"),
        (b'{"text": ["great", "awful"]}', JSON, ""),
        (b"{}", JSON, "text=great&text=awful"),
    ],
)
def test_several_texts(client: Client, body: bytes, content_type: str | None, query: str) -> None:
    reply = client(body, content_type, query=query)
    assert reply.code == 200
    assert reply.body == b"[" + client(b"text=great").body + b"," + client(b"text=awful").body + b"]"


def test_list_of_one(client: Client) -> None:
    assert client(b'{"text": ["great"]}', JSON).body == b"[" + client(b"text=great").body + b"]"


@pytest.mark.parametrize(
    ("body", "content_type", "query"),
    [
        (b"text=great&k=3", FORM, ""),
        (b"text=great&k=3", FORM, "k=2"),
        (b"text=great", FORM, "k=3"),
        (b'{"text": "great", "k": 3}', JSON, "k=2"),
        (b'{"text": "great", "k": null}', JSON, "k=3"),
        (b"great", "text/plain", "k=3"),
    ],
)
def test_k(client: Client, classifier: Classifier, body: bytes, content_type: str, query: str) -> None:
    reply = json.loads(client(body, content_type, query=query).body)
    assert list(reply) == [label for label, _ in classifier.predict("great", k=3)]


@pytest.mark.parametrize(
    ("body", "content_type", "query"),
    [
        (b"text=great&k=5&threshold=0.9", FORM, ""),
        (b"text=great&k=5&threshold=9e-1", FORM, "threshold=0"),
        (b"text=great&k=5", FORM, "threshold=.9"),
        (b'{"text": "great", "k": 5, "threshold": 0.9}', JSON, "threshold=0"),
        (b"great", "text/plain", "k=5&threshold=0.9"),
    ],
)
def test_threshold(client: Client, classifier: Classifier, body: bytes, content_type: str, query: str) -> None:
    reply = json.loads(client(body, content_type, query=query).body)
    assert list(reply) == [label for label, confidence in classifier.predict("great", k=5) if confidence >= 0.9]


def test_threshold_reached_by_none(client: Client) -> None:
    assert client(b"text=great+awful+okay&threshold=1").body == b"{}"
    assert client(b"text=great+awful&text=okay+great&threshold=1").body == b"[{},{}]"


@pytest.mark.parametrize(
    ("body", "content_type", "query", "message"),
    [
        (b"", FORM, "", MANDATORY),
        (b"", None, "", MANDATORY),
        (b"text=", FORM, "", MANDATORY),
        (b"text", FORM, "text=great", MANDATORY),
        (b"Text=great", FORM, "", MANDATORY),
        (b"{}", JSON, "", MANDATORY),
        (b'{"text": ""}', JSON, "", MANDATORY),
        (b'{"text": []}', JSON, "", MANDATORY),
        (b"", JSON, "", MANDATORY),
        (b"", "text/plain", "", MANDATORY),
        (b"text=a&text=", FORM, "", "param 'text' must not be empty, and text 2 of 2 is"),
        (b'["a"]', JSON, "", 'the JSON body must be an object, such as {"text": "I love this product"}'),
        (b'{"text": 1}', JSON, "", "param 'text' must be a string or a list of strings"),
        (b"text=a&k=1&k=1", FORM, "", "param 'k' must be given only once"),
        (b"text=a", FORM, "threshold=1&threshold=1", "param 'threshold' must be given only once"),
        *[
            (f"text=a&k={k}".encode(), FORM, "", "param 'k' must be an integer from 1 to 5, the number of labels")
            for k in ("0", "6", "-1", "1.0", "", "%20", "1_0", "%D9%A1", "9" * 5000)
        ],
        *[
            (
                f'{{"text": "a", "k": {k}}}'.encode(),
                JSON,
                "",
                "param 'k' must be an integer from 1 to 5, the number of labels",
            )
            for k in ("0", "true", "1.0", '"1"', "[]", "9" * 50)
        ],
        *[
            (f"text=a&threshold={threshold}".encode(), FORM, "", "param 'threshold' must be a number from 0 to 1")
            for threshold in ("-0.1", "1.1", "nan", "inf", "", "%200.5", "0_1", "1e", "0x1", "%D9%A1", "1e999")
        ],
        *[
            (
                f'{{"text": "a", "threshold": {threshold}}}'.encode(),
                JSON,
                "",
                "param 'threshold' must be a number from 0 to 1",
            )
            for threshold in ("-1", "1e999", "true", '"0.5"', "{}")
        ],
    ],
)
def test_bad_request(client: Client, body: bytes, content_type: str | None, query: str, message: str) -> None:
    reply = client(body, content_type, query=query)
    assert (reply.code, json.loads(reply.body)) == (400, error(message))
    assert reply.header("content-type") == JSON


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize(
    ("make_body", "content_type"),
    [
        (lambda count: b"&".join([b"text=a"] * count), FORM),
        (lambda count: json.dumps({"text": ["a"] * count}).encode(), JSON),
    ],
)
def test_too_many_texts(classifier: Classifier, count: int, make_body: Any, content_type: str) -> None:
    reply = Client(classifier, {"max_texts": 3})(make_body(count), content_type)
    if count == 3:
        assert reply.code == 200
    else:
        message = "4 texts are too many for one request, at most 3 are allowed"
        assert (reply.code, json.loads(reply.body)) == (400, error(message))


def test_too_many_texts_in_the_query(classifier: Classifier) -> None:
    client = Client(classifier, {"max_texts": 1})
    assert client(b"{}", JSON, query="text=a&text=b").code == 400
    assert client(b"", FORM, query="text=a&text=b").code == 400


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("content_type", [FORM, "text/plain", "image/png"])
@pytest.mark.parametrize("chunked", [False, True])
def test_body_limit(classifier: Classifier, extra: int, content_type: str, chunked: bool) -> None:
    client = Client(classifier, {"max_body": 100})
    body = b"text=" + b"a" * (95 + extra)
    reply = client(body, content_type, CONTENT_LENGTH=None if chunked else str(len(body)))
    if extra:
        assert (reply.code, json.loads(reply.body)) == (413, error("the body must be at most 100 bytes long"))
    else:
        assert reply.code == (415 if content_type == "image/png" else 200)


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
@pytest.mark.parametrize("content_type", [FORM, "text/plain", JSON])
def test_body_compressed(client: Client, encoding: str, content_type: str) -> None:
    reply = client(b"text=great", content_type, HTTP_CONTENT_ENCODING=encoding)
    assert (reply.code, json.loads(reply.body)) == (415, error("the body must not be compressed"))


def test_body_not_compressed(client: Client) -> None:
    assert client(b"text=great", HTTP_CONTENT_ENCODING="Identity").body == client(b"text=great").body


@pytest.mark.parametrize(("count", "code"), [(334, 400), (333, 200)])
def test_reply_to_several_texts_is_bounded(count: int, code: int) -> None:
    labels = [f"__label__{number}" for number in range(300)]
    client = Client(Classifier(lambda line, k, threshold, errors: [(0.5, label) for label in labels[:k]], labels))
    for body, content_type in [
        (b"k=300" + b"&text=a" * count, FORM),
        (json.dumps({"k": 300, "text": ["a"] * count}).encode(), JSON),
    ]:
        reply = client(body, content_type)
        assert reply.code == code
        if code == 400:
            message = "334 texts with k=300 are 100200 confidences, at most 100000 are allowed in one request"
            assert json.loads(reply.body) == error(message)


def test_body_chunked(client: Client) -> None:
    assert client(b"text=great", CONTENT_LENGTH=None).body == client(b"text=great").body


@pytest.mark.parametrize("content_type", ["image/png", "multipart/form-data; boundary=x", ";", "text"])
def test_media_type_unknown(client: Client, content_type: str) -> None:
    reply = client(b"text=great", content_type)
    message = "the media type must be application/x-www-form-urlencoded, application/json or text/plain"
    assert (reply.code, json.loads(reply.body)) == (415, error(message))


@pytest.mark.parametrize("content_type", ["text/plain; charset=latin-1", f"{FORM}; Charset=UTF-16"])
def test_charset_unknown(client: Client, content_type: str) -> None:
    reply = client(b"text=great", content_type)
    assert (reply.code, json.loads(reply.body)) == (415, error("the charset of a body must be UTF-8"))


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "TRACE"])
def test_method_not_allowed(client: Client, method: str) -> None:
    reply = client(b"text=great", method=method)
    assert (reply.code, reply.header("allow")) == (405, "POST, OPTIONS")
    if method != "HEAD":
        assert json.loads(reply.body) == error("the method is not allowed here, allowed are POST, OPTIONS")


def test_method_options(client: Client) -> None:
    reply = client(method="OPTIONS")
    assert (reply.code, reply.header("allow"), reply.body) == (200, "POST", b"")


@pytest.mark.parametrize("path", ["/", "", "/inferreview/", "/inferreviews", "/INFERREVIEW", "/\xe9\x00"])
def test_path_unknown(client: Client, path: str) -> None:
    reply = client(b"text=great", path=path)
    message = "there is nothing at this path, texts are answered at POST /inferreview"
    assert (reply.code, json.loads(reply.body)) == (404, error(message))


@pytest.mark.parametrize(
    ("length", "code"), [("11", 400), ("1010", 400), ("-1", 400), ("ten", 400), ("1e1", 400), ("9" * 30, 413)]
)
def test_content_length_wrong(client: Client, length: str, code: int) -> None:
    reply = client(b"text=great", CONTENT_LENGTH=length)
    assert reply.code == code
    assert set(json.loads(reply.body)) == {"Error"}


def test_engine_fails(caplog: pytest.LogCaptureFixture) -> None:
    def fail(line: bytes, *_: object) -> list[tuple[float, str]]:
        raise RuntimeError("Encountered NaN.")

    client = Client(Classifier(fail, ["__label__a"]))
    for content_type, body in [(FORM, b"text=very+secret"), (JSON, b'{"text": "very secret"}')]:
        with caplog.at_level(logging.DEBUG):
            reply = client(body, content_type)
        assert (reply.code, json.loads(reply.body)) == (500, error("An internal server error has occurred"))
        assert "RuntimeError: Encountered NaN." in caplog.text
        assert "secret" not in caplog.text
        caplog.clear()


def test_engine_fails_with_the_text(caplog: pytest.LogCaptureFixture) -> None:
    def fail(line: bytes, *_: object) -> list[tuple[float, str]]:
        raise LookupError(line.decode())

    assert Client(Classifier(fail, ["__label__a"]))(b"text=very+secret").code == 500
    assert "LookupError" in caplog.text
    assert "secret" not in caplog.text


def test_labels_hostile(hostile_classifier: Classifier) -> None:
    reply = Client(hostile_classifier)(b"text=alpha&k=8")
    assert set(json.loads(reply.body)) == set(hostile_classifier.labels)


@pytest.mark.parametrize(
    "environ",
    [
        make_environ(b"text=great"),
        make_environ(b"text=great&text=awful&k=2", query="k=1"),
        make_environ(b'{"text": "great"}', JSON),
        make_environ(b""),
        make_environ(b"text=great", "image/png"),
        make_environ(method="GET", CONTENT_TYPE=None),
        make_environ(method="HEAD"),
        make_environ(method="OPTIONS"),
        make_environ(path="/nothing"),
    ],
    ids=lambda environ: f"{environ['REQUEST_METHOD']} {environ.get('CONTENT_TYPE')} {environ['PATH_INFO']}",
)
def test_wsgi_conformance(classifier: Classifier, environ: dict[str, Any]) -> None:
    started: list[Any] = []
    environ = dict(environ)
    environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].getvalue())
    result = validator(create_app(classifier))(environ, lambda *args: started.append(args) or (lambda data: None))
    try:
        assert b"".join(result) or environ["REQUEST_METHOD"] in ("HEAD", "OPTIONS")
    finally:
        result.close()
    assert len(started) == 1


@pytest.mark.parametrize("limits", [{"max_body": 0}, {"max_texts": 0}])
def test_create_app_wrong_limits(classifier: Classifier, limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        create_app(classifier, **limits)


def test_app_mounted_behind_a_stream_that_is_no_buffer(classifier: Classifier) -> None:
    """Another server's stream is read to Content-Length and no further."""

    class Stream:
        def __init__(self) -> None:
            self._buffer = io.BytesIO(b"text=greatGET / HTTP/1.1")

        def read(self, size: int = -1) -> bytes:
            assert size >= 0
            return self._buffer.read(size)

    environ = make_environ(b"", CONTENT_LENGTH="10", **{"wsgi.input": Stream(), "wsgi.input_terminated": None})
    assert call(create_app(classifier), environ).body == Client(classifier)(b"text=great").body
