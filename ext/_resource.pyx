"""The two doors to ``POST /inferreview``: a Falcon resource, and a WSGI entry that answers the plain case first.

Both call the same functions of ``_inference`` and give the same bytes. The entry takes a form that is well-formed and
within the limits; every other request is Falcon's, and so is every error.
"""

from io import BytesIO

import falcon

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject

from pyserve._body cimport Body
from pyserve._inference cimport Classifier

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


ROUTE = "/inferreview"

cdef str HOT_PATH = ROUTE
cdef str POST = "POST"
cdef str FORM = "application/x-www-form-urlencoded"
cdef str STATUS_OK = "200 OK"

# A form as clients name it; other spellings are Falcon's.
cdef frozenset FORMS = frozenset(
    [FORM] + [f"{FORM};{space}charset={charset}" for space in ("", " ") for charset in ("utf-8", "UTF-8")]
)

cdef enum:
    CACHED_LENGTHS = 1024
    MOST_DIGITS = 18

# The headers as Falcon spells and orders them.
cdef tuple CONTENT_TYPE = ("content-type", "application/json")
cdef list CONTENT_LENGTHS = [("content-length", str(length)) for length in range(CACHED_LENGTHS)]


cdef inline object lookup(dict environ, str key):
    """Return the value of a key, or None."""
    # SAFETY: the borrowed reference becomes an owned one at once.
    cdef PyObject* value = PyDict_GetItem(environ, key)
    return None if value == NULL else <object>value


cdef bytes read_body(object req, Py_ssize_t max_body):
    """Read the whole body of a Falcon request, or raise the HTTP error that it deserves."""
    cdef bytes body
    stream = req.env["wsgi.input"]
    if type(stream) is Body and (<Body>stream).over_limit:
        raise too_large(max_body)
    length = req.content_length
    if length is None:
        # Chunked: only a server that ends the stream by itself can hand it on.
        if not req.env.get("wsgi.input_terminated"):
            return b""
        body = req.stream.read(max_body + 1)
    elif length > max_body:
        raise too_large(max_body)
    else:
        body = req.bounded_stream.read()
        if PyBytes_GET_SIZE(body) != length:
            raise falcon.HTTPBadRequest(description="the body is not as long as Content-Length says")
    if PyBytes_GET_SIZE(body) > max_body:
        raise too_large(max_body)
    return body


cdef object too_large(Py_ssize_t max_body):
    return falcon.HTTPContentTooLarge(description=f"the body must be at most {max_body} bytes long")


class InferReview:
    """The Falcon resource of the route."""

    def __init__(self, Classifier classifier not None, Py_ssize_t max_body, Py_ssize_t max_texts):
        self._classifier = classifier
        self._max_body = max_body
        self._max_texts = max_texts

    def on_post(self, req, resp):
        """Answer the texts of a form, a JSON document or a plain body."""
        body = read_body(req, self._max_body)
        if req.get_header("Content-Encoding", default="identity").strip().lower() != "identity":
            raise falcon.HTTPUnsupportedMediaType(description="the body must not be compressed")
        query = req.query_string.encode("latin-1")
        try:
            resp.data = self._classifier.answer(body, req.content_type, query=query, max_texts=self._max_texts)
        except ValueError as error:
            raise falcon.HTTPBadRequest(description=str(error)) from None
        except LookupError as error:
            raise falcon.HTTPUnsupportedMediaType(description=str(error)) from None


@cython.final
cdef class Entry:
    """The WSGI application."""

    def __init__(self, Classifier classifier not None, falcon_app, Py_ssize_t max_body, Py_ssize_t max_texts):
        self.falcon_app = falcon_app
        self.classifier = classifier
        self.max_body = max_body
        self._max_texts = max_texts

    def __call__(self, environ, start_response):
        return self.handle(environ, start_response)

    def handle(self, dict environ not None, start_response):
        """Answer a request; the same as calling the object, without the cost of its ``tp_call``."""
        cdef bytes reply = self.answer(environ)
        if reply is None:
            return self.falcon_app(environ, start_response)
        start_response(STATUS_OK, self.headers(reply))
        return [reply]

    cdef list headers(self, bytes reply):
        """Return the headers of a reply to the hot route."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(reply)
        return [CONTENT_LENGTHS[size] if size < CACHED_LENGTHS else ("content-length", str(size)), CONTENT_TYPE]

    cdef bytes answer(self, dict environ):
        """Return the reply, or None where the request is Falcon's; its body can then still be read."""
        cdef object media_type = lookup(environ, "CONTENT_TYPE")
        cdef object stream = lookup(environ, "wsgi.input")
        cdef object query
        cdef bytes body
        cdef Py_ssize_t size
        if (
            lookup(environ, "REQUEST_METHOD") != POST
            or lookup(environ, "HTTP_CONTENT_ENCODING") is not None
            or lookup(environ, "PATH_INFO") != HOT_PATH
            or not (media_type is None or media_type == FORM or media_type in FORMS)
        ):
            return None
        if type(stream) is Body:
            body = (<Body>stream).content()
        elif type(stream) is BytesIO:
            body = stream.read()
        else:
            return None
        size = PyBytes_GET_SIZE(body)
        if size <= self.max_body and is_length(lookup(environ, "CONTENT_LENGTH"), size):
            query = lookup(environ, "QUERY_STRING")
            try:
                return self.classifier.answer_form(body, query.encode("latin-1") if query else b"", self._max_texts)
            except Exception:  # whatever it is, Falcon's door meets it again and answers it
                pass
        if type(stream) is BytesIO:
            stream.seek(0)
        return None


cdef bint is_length(object header, Py_ssize_t size) except -1:
    """Tell whether a Content-Length header is there and says just this size; an odd spelling is left to Falcon."""
    cdef Py_ssize_t digits = 0
    cdef Py_ssize_t i
    cdef Py_ssize_t length = 0
    cdef const char* text
    if header is None:
        return False
    text = PyUnicode_AsUTF8AndSize(header, &digits)
    if not 1 <= digits <= MOST_DIGITS:
        return False
    # SAFETY: text holds `digits` bytes, and so many digits fit into a Py_ssize_t.
    for i in range(digits):
        if not c'0' <= text[i] <= c'9':
            return False
        length = 10 * length + text[i] - c'0'
    return length == size
