"""Turn a request body into texts, texts into predictions, and predictions into JSON.

fastText reads one line, ended by a line feed. A *line* in this module is that: UTF-8 bytes with exactly one line feed,
their last byte. Wherever a text comes from, it becomes a line by the same rules:

* invalid UTF-8, and a lone surrogate in a ``str``, become U+FFFD;
* a line feed inside the text becomes a space: to fastText it would be the end of the text;
* a token ``</s>``, fastText's name for the end of a line, becomes white space for the same reason.
"""

import json
from collections.abc import Iterable

from pyserve.explanation import Explanation, TokenShare

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.math cimport fabs, isfinite, rint
from libc.stdint cimport int8_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

from pyserve._counters cimport now_ticks, record_prediction

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


LABEL_PREFIX = "__label__"

cdef enum:
    STACK_BYTES = 4096  # texts and replies up to this size need no allocation
    STACK_SCORES = 16
    MOST_SCORES = 100_000  # confidences in the reply to several texts
    MOST_THREADS = 256
    NUMBER_BYTES = 48  # the largest float32 has 39 digits

cdef object ONE = 1
cdef object ZERO = 0.0
# Keeps labels that are not UTF-8 distinct: to the binding it is a codec error handler's name.
cdef str LOSSLESS = "surrogateescape"

cdef str TEXT_IS_MANDATORY = "param 'text' is mandatory"
cdef str THRESHOLD_RANGE = "param 'threshold' must be a number from 0 to 1"
cdef frozenset THRESHOLD_CHARACTERS = frozenset("0123456789.eE+-")


class EngineError(RuntimeError):
    """The engine failed on a text. The message is the engine's own and never holds the text."""


# --- Form -> text -----------------------------------------------------------------------

cdef struct Fields:
    Span text  # the first one
    Py_ssize_t texts
    Span k
    Py_ssize_t ks
    Span threshold
    Py_ssize_t thresholds


cdef enum Name:
    OTHER, TEXT, K, THRESHOLD


cdef int8_t[256] HEX_VALUES


cdef void fill_hex_values() noexcept nogil:
    cdef int i
    memset(HEX_VALUES, -1, sizeof(HEX_VALUES))
    for i in range(10):
        HEX_VALUES[c'0' + i] = <int8_t>i
    for i in range(6):
        HEX_VALUES[c'a' + i] = HEX_VALUES[c'A' + i] = <int8_t>(10 + i)


fill_hex_values()


cdef inline Py_ssize_t unquote_plus(const unsigned char* source, Py_ssize_t size, unsigned char* target) noexcept nogil:
    """Decode ``+`` and percent-escapes; a malformed escape stays as it is. Return the size, never larger."""
    # SAFETY: target holds size bytes; a step never writes more than it reads.
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t written = 0
    cdef int high, low
    cdef unsigned char byte
    while i < size:
        byte = source[i]
        if byte == c'%' and i + 2 < size:
            high = HEX_VALUES[source[i + 1]]
            low = HEX_VALUES[source[i + 2]]
            if high >= 0 and low >= 0:
                byte = <unsigned char>(high << 4 | low)
                i += 2
        elif byte == c'+':
            byte = c' '
        target[written] = byte
        written += 1
        i += 1
    return written


cdef inline Name match_name(const unsigned char* name, Py_ssize_t size) noexcept nogil:
    if size == 4 and memcmp(name, "text", 4) == 0:
        return TEXT
    if size == 1 and name[0] == c'k':
        return K
    if size == 9 and memcmp(name, "threshold", 9) == 0:
        return THRESHOLD
    return OTHER


cdef inline Name read_name(const unsigned char* name, Py_ssize_t size) noexcept nogil:
    """Tell which field a name as it stands in a form is; a client may escape any of its characters."""
    cdef unsigned char[27] decoded  # "threshold", each character escaped
    if memchr(name, c'%', size) == NULL:
        return match_name(name, size)
    if size > <Py_ssize_t>sizeof(decoded):
        return OTHER
    return match_name(decoded, unquote_plus(name, size, decoded))


cdef inline const unsigned char* next_field(const unsigned char* at, const unsigned char* end,
                                            Name* name, Span* value) noexcept nogil:
    """Read the field that starts at ``at``. Return where the next one starts: behind ``end`` after the last."""
    # SAFETY: at <= end, so every size below is at least 0.
    cdef const unsigned char* stop = <const unsigned char*>memchr(at, c'&', end - at)
    if stop == NULL:
        stop = end
    cdef const unsigned char* equals = <const unsigned char*>memchr(at, c'=', stop - at)
    if equals == NULL:
        # Of the field "" there is no name: "a=1&&b=2" has two fields.
        name[0] = OTHER if at == stop else read_name(at, stop - at)
        value.data = stop
        value.size = 0
    else:
        name[0] = read_name(at, equals - at)
        value.data = equals + 1
        value.size = stop - value.data
    return stop + 1


cdef void find_fields(const unsigned char* form, Py_ssize_t size, Fields* fields) noexcept nogil:
    """Find the fields that mean something here, without decoding their values."""
    cdef const unsigned char* at = form
    cdef const unsigned char* end = form + size
    cdef Name name = OTHER
    cdef Span value
    memset(fields, 0, sizeof(Fields))
    while at < end:
        at = next_field(at, end, &name, &value)
        if name == TEXT:
            if fields.texts == 0:
                fields.text = value
            fields.texts += 1
        elif name == K:
            fields.k = value
            fields.ks += 1
        elif name == THRESHOLD:
            fields.threshold = value
            fields.thresholds += 1


cdef inline bint is_utf8(const unsigned char* text, Py_ssize_t size) noexcept nogil:
    """Tell whether the bytes are UTF-8 (RFC 3629): no overlong form, no surrogate, nothing above U+10FFFF."""
    cdef const unsigned char* at = text
    cdef const unsigned char* end = text + size
    cdef unsigned char lead, second
    while at < end:
        lead = at[0]
        if lead < 0x80:
            at += 1
        elif lead < 0xC2:
            return False
        elif lead < 0xE0:
            if end - at < 2 or at[1] & 0xC0 != 0x80:
                return False
            at += 2
        elif lead < 0xF0:
            if end - at < 3 or at[1] & 0xC0 != 0x80 or at[2] & 0xC0 != 0x80:
                return False
            second = at[1]
            if (lead == 0xE0 and second < 0xA0) or (lead == 0xED and second > 0x9F):
                return False
            at += 3
        elif lead < 0xF5:
            if end - at < 4 or at[1] & 0xC0 != 0x80 or at[2] & 0xC0 != 0x80 or at[3] & 0xC0 != 0x80:
                return False
            second = at[1]
            if (lead == 0xF0 and second < 0x90) or (lead == 0xF4 and second > 0x8F):
                return False
            at += 4
        else:
            return False
    return True


cdef inline bint is_space(unsigned char byte) noexcept nogil:
    """Tell whether fastText takes the byte for white space (``Dictionary::readWord``)."""
    return byte == c' ' or 9 <= byte <= 13 or byte == 0


cdef void blank_end_tokens(unsigned char* text, Py_ssize_t size) noexcept nogil:
    """Overwrite each token ``</s>`` with spaces."""
    # SAFETY: at[-1] is read where at > text, at[4] where at + 4 < end; the search stops 3 bytes before the end.
    cdef unsigned char* at = text
    cdef unsigned char* end = text + size
    while end - at >= 4:
        at = <unsigned char*>memchr(at, c'<', end - at - 3)
        if at == NULL:
            return
        if memcmp(at, "</s>", 4) == 0 and (at == text or is_space(at[-1])) and (at + 4 == end or is_space(at[4])):
            memset(at, c' ', 4)
        at += 1


cdef inline bint seal_line(unsigned char* text, Py_ssize_t size) noexcept nogil:
    """Make a line of a text in its buffer, all but the UTF-8. Return whether that is right as well."""
    # SAFETY: the buffer holds size + 1 bytes.
    cdef Py_ssize_t i
    cdef unsigned char union_of_bits = 0
    for i in range(size):
        union_of_bits |= text[i]
        text[i] = c' ' if text[i] == c'\n' else text[i]
    blank_end_tokens(text, size)
    text[size] = c'\n'
    return union_of_bits < 0x80 or is_utf8(text, size)


cdef bytes repair_line(const unsigned char* line, Py_ssize_t size):
    """Return the line with U+FFFD in place of what is not UTF-8."""
    return PyUnicode_DecodeUTF8(<const char*>line, size, "replace").encode()


cdef bytes make_line(const unsigned char* text, Py_ssize_t size, bint quoted):
    """Return a text as a line, decoded from its form encoding where it is ``quoted``."""
    cdef bytes line = PyBytes_FromStringAndSize(NULL, size + 1)
    # SAFETY: nobody else has the object yet; decoding never lengthens a text, and the last byte is for the line feed.
    cdef unsigned char* target = <unsigned char*>PyBytes_AS_STRING(line)
    cdef Py_ssize_t decoded = size
    if quoted:
        decoded = unquote_plus(text, size, target)
    else:
        memcpy(target, text, size)
    if not seal_line(target, decoded):
        return repair_line(target, decoded + 1)
    return line if decoded == size else line[:decoded + 1]


cdef bytes line_of_str(object text):
    """Return a ``str`` as a line."""
    cdef Py_ssize_t size = 0
    cdef const char* data
    cdef bytes encoded
    try:
        data = PyUnicode_AsUTF8AndSize(text, &size)
    except UnicodeEncodeError:
        encoded = "".join(["\N{REPLACEMENT CHARACTER}" if "\ud800" <= c <= "\udfff" else c for c in text]).encode()
        return make_line(<const unsigned char*>PyBytes_AS_STRING(encoded), PyBytes_GET_SIZE(encoded), False)
    return make_line(<const unsigned char*>data, size, False)


cdef bytes line_of(object text):
    if isinstance(text, str):
        return line_of_str(text)
    if isinstance(text, bytes):
        return make_line(<const unsigned char*>PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), False)
    raise TypeError(f"a text must be str or bytes, not {type(text).__name__}")


cdef list lines_of_form(const unsigned char* form, Py_ssize_t size, Py_ssize_t count):
    """Decode every ``text`` field, ``count`` in number."""
    cdef const unsigned char* at = form
    cdef const unsigned char* end = form + size
    cdef Name name = OTHER
    cdef Span value
    cdef list lines = []
    while at < end:
        at = next_field(at, end, &name, &value)
        if name == TEXT:
            if value.size == 0:
                raise empty_text(len(lines), count)
            lines.append(make_line(value.data, value.size, True))
    return lines


cdef object empty_text(Py_ssize_t position, Py_ssize_t count):
    if count == 1:
        return ValueError(TEXT_IS_MANDATORY)
    return ValueError(f"param 'text' must not be empty, and text {position + 1} of {count} is")


cdef int check_scores(Py_ssize_t count, Py_ssize_t k) except -1:
    """Bound the reply of a batch: a few bytes of request could ask for a reply of hundreds of megabytes."""
    if count * k > MOST_SCORES:
        raise ValueError(
            f"{count} texts with k={k} are {count * k} confidences, at most {MOST_SCORES} are allowed in one request"
        )
    return 0


cdef object too_many_texts(Py_ssize_t count, Py_ssize_t allowed):
    return ValueError(f"{count} texts are too many for one request, at most {allowed} are allowed")


cdef str unquote_parameter(Span value, Py_ssize_t count, str name):
    """Decode the value of a parameter that may stand in a form only once."""
    if count > 1:
        raise ValueError(f"param '{name}' must be given only once")
    cdef bytes decoded = PyBytes_FromStringAndSize(NULL, value.size)
    cdef Py_ssize_t size = unquote_plus(value.data, value.size, <unsigned char*>PyBytes_AS_STRING(decoded))
    return decoded[:size].decode("utf-8", "replace")


# --- JSON and plain text -> text -----------------------------------------------------------------------

def _refuse_constant(name: str):
    raise ValueError(name)


cdef dict read_json(bytes body):
    """Return the JSON object of a body, or raise ValueError with what is wrong."""
    if body.startswith(b"\xef\xbb\xbf"):
        raise ValueError("the body is not valid JSON: it must not begin with a byte order mark")
    try:
        document = json.loads(body.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise ValueError("the body is not valid JSON: it must be UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the body is not valid JSON: error at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("the body is not valid JSON: it is nested too deeply") from None
    except ValueError:
        raise ValueError("the body is not valid JSON: NaN, Infinity and numbers of thousands of digits are not allowed"
                         ) from None
    if not isinstance(document, dict):
        raise ValueError('the JSON body must be an object, such as {"text": "I love this product"}')
    return document


cdef list lines_of_json(object text):
    """Return the value of ``text`` in a JSON object as lines."""
    cdef list lines = []
    if isinstance(text, str):
        if not text:
            raise empty_text(0, 1)
        return [line_of_str(text)]
    if not isinstance(text, list):
        raise ValueError("param 'text' must be a string or a list of strings")
    for item in text:
        if not isinstance(item, str):
            raise ValueError("param 'text' must be a string or a list of strings")
        if not item:
            raise empty_text(len(lines), len(text))
        lines.append(line_of_str(item))
    return lines


# --- Prediction -> JSON -----------------------------------------------------------------------

cdef Py_ssize_t write_digits(char* target, uint64_t number) noexcept nogil:
    """Write a number without leading zeros. Return how many digits it has."""
    cdef char[20] reversed_digits
    cdef Py_ssize_t size = 0
    cdef Py_ssize_t i
    while True:
        reversed_digits[size] = <char>(c'0' + number % 10)
        number //= 10
        size += 1
        if number == 0:
            break
    for i in range(size):
        target[i] = reversed_digits[size - 1 - i]
    return size


@cython.cdivision(True)
cdef Py_ssize_t write_number(char* target, float number) noexcept nogil:
    """Write a finite number smaller than LARGE as JSON: at most 10 decimals, no trailing zeros. Return the size.

    The digits are those of C's ``%.10f``. A float32 has 24 significant bits, 10**10 = 2**10 * 9765625 has 24 too, and
    so their product is exact in a double; ``rint`` then rounds half to even, as printf does.
    """
    # SAFETY: target holds NUMBER_BYTES: a sign, 9 digits, a point and 10 digits at most.
    cdef double scaled = rint(fabs(<double>number) * 1e10)
    cdef uint64_t units = <uint64_t>scaled
    cdef uint64_t whole = units // 10_000_000_000ULL
    cdef uint64_t fraction = units % 10_000_000_000ULL
    cdef Py_ssize_t size = 0
    cdef Py_ssize_t i
    if number < 0 and units:
        target[0] = c'-'
        size = 1
    if whole < 10:
        target[size] = <char>(c'0' + whole)
        size += 1
    else:
        size += write_digits(target + size, whole)
    if fraction == 0:
        return size
    target[size] = c'.'
    for i in range(10, 0, -1):
        target[size + i] = <char>(c'0' + fraction % 10)
        fraction //= 10
    size += 11
    while target[size - 1] == c'0':
        size -= 1
    return size


# From here on a float32 has no fraction, and write_number() is not for it.
cdef double LARGE = 536870912.0


cdef bytes number_of(double number):
    """Return a number as JSON, of any magnitude."""
    cdef char[NUMBER_BYTES] buffer
    if not isfinite(number):
        raise EngineError("the engine gave a confidence that is not a finite number")
    if fabs(number) < LARGE:
        return PyBytes_FromStringAndSize(buffer, write_number(buffer, <float>number))
    return f"{number:.0f}".encode()  # a float32 of this magnitude has no fraction


cdef Py_ssize_t write_reply(char* target, list prefixes, const Score* scores, Py_ssize_t count) except -1:
    """Write scores as one JSON object, each behind its label's prefix. Return the size."""
    # SAFETY: target holds, for each score, NUMBER_BYTES and its prefix, and 2 bytes.
    cdef Py_ssize_t i, size
    cdef char* at = target
    cdef bytes prefix, number
    at[0] = c'{'
    at += 1
    for i in range(count):
        if i:
            at[0] = c','
            at += 1
        prefix = <bytes>prefixes[scores[i].label]
        size = PyBytes_GET_SIZE(prefix)
        memcpy(at, PyBytes_AS_STRING(prefix), size)
        at += size
        if isfinite(scores[i].confidence) and fabs(scores[i].confidence) < LARGE:
            at += write_number(at, scores[i].confidence)
        else:
            number = number_of(scores[i].confidence)
            memcpy(at, PyBytes_AS_STRING(number), PyBytes_GET_SIZE(number))
            at += PyBytes_GET_SIZE(number)
    at[0] = c'}'
    return at + 1 - target


cdef bytes format_scores(list prefixes, Py_ssize_t longest_prefix, const Score* scores, Py_ssize_t count):
    """Return scores as one compact JSON object, in the order given."""
    cdef char[STACK_BYTES] small
    cdef Py_ssize_t bound = 2 + count * (longest_prefix + NUMBER_BYTES + 1)
    cdef char* buffer = small
    if bound > STACK_BYTES:
        buffer = <char*>PyMem_Malloc(bound)
        if buffer == NULL:
            raise MemoryError
    try:
        return PyBytes_FromStringAndSize(buffer, write_reply(buffer, prefixes, scores, count))
    finally:
        if buffer != small:
            PyMem_Free(buffer)


cdef bytes render_prefix(str label):
    """Return what stands before a label's number in a reply."""
    return json.dumps(label, ensure_ascii=False).encode() + b":"


# --- The public functions -----------------------------------------------------------------------

def parse_form(bytes form not None) -> tuple:
    """Return the texts of a form as lines, and the values of k and threshold, or None."""
    cdef Fields fields
    cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(form)
    find_fields(data, PyBytes_GET_SIZE(form), &fields)
    return (
        lines_of_form(data, PyBytes_GET_SIZE(form), fields.texts),
        unquote_parameter(fields.k, fields.ks, "k") if fields.ks else None,
        unquote_parameter(fields.threshold, fields.thresholds, "threshold") if fields.thresholds else None,
    )


def parse_json(bytes body not None) -> tuple:
    """Return the texts of a JSON object as lines, and the values of k and threshold, or None."""
    cdef dict document = read_json(body)
    return (
        lines_of_json(document.get("text", [])),
        document.get("k"),
        document.get("threshold"),
    )


def format_line(text) -> bytes:
    """Return a text as the line that the engine reads."""
    return line_of(text)


def format_number(double number) -> bytes:
    """Return a number, taken as float32, as JSON with at most 10 decimals."""
    return number_of(<float>number)


def format_reply(pairs) -> bytes:
    """Return pairs of label and confidence as one compact JSON object."""
    cdef list prefixes = []
    cdef Py_ssize_t count = 0
    cdef Py_ssize_t longest = 0
    cdef Score* scores
    pairs = list(pairs)
    scores = <Score*>PyMem_Malloc(max(1, len(pairs)) * sizeof(Score))
    if scores == NULL:
        raise MemoryError
    try:
        for label, confidence in pairs:
            prefixes.append(render_prefix(label))
            longest = max(longest, PyBytes_GET_SIZE(prefixes[count]))
            scores[count] = Score(count, confidence)
            count += 1
        return format_scores(prefixes, longest, scores, count)
    finally:
        PyMem_Free(scores)


cdef enum MediaKind:
    FORM, JSON, PLAIN


cdef MediaKind kind_of_media(str content_type) except *:
    """Tell what a body is from its Content-Type; without one it is a form."""
    if not content_type:
        return FORM
    media_type, _, parameters = content_type.partition(";")
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip(' "\'').lower() not in ("utf-8", "utf8", "us-ascii"):
            raise LookupError("the charset of a body must be UTF-8")
    media_type = media_type.strip().lower()
    if media_type == "application/x-www-form-urlencoded":
        return FORM
    if media_type == "application/json":
        return JSON
    if media_type == "text/plain":
        return PLAIN
    raise LookupError("the media type must be application/x-www-form-urlencoded, application/json or text/plain")


@cython.final
cdef class Classifier:
    """A supervised model together with how its labels are shown; ``load_model`` makes one."""

    def __init__(self, predict, labels, *, label_format=None, label_prefix=LABEL_PREFIX):
        cdef str label, name
        cdef list names = []
        cdef bytes prefix
        if isinstance(predict, NativeEngine):
            self._native = predict
            predict = predict.predict
        self._predict = predict
        self._label_numbers = {}
        self._prefixes = []
        self._longest_prefix = 0
        for label in labels:
            if label in self._label_numbers:
                raise ValueError("the labels of a model must be distinct")
            self._label_numbers[label] = len(names)
            name = label.encode("utf-8", LOSSLESS).decode("utf-8", "replace")
            names.append(name.removeprefix(label_prefix) or name)
        if not names:
            raise ValueError("a classifier needs at least one label")
        if self._native is not None and tuple(self._label_numbers) != self._native.info.labels:
            raise ValueError("the native engine needs the labels of its model, in their order")
        if label_format is None:
            label_format = "{} star" if all(name.isascii() and name.isdigit() for name in names) else "{}"
        if label_format.count("{}") != 1:
            raise ValueError('a label format must hold {} once, as in "{} star"')
        self.labels = tuple([label_format.replace("{}", name) for name in names])
        for name in self.labels:
            prefix = render_prefix(name)
            self._prefixes.append(prefix)
            self._longest_prefix = max(self._longest_prefix, PyBytes_GET_SIZE(prefix))

    def __repr__(self):
        return f"<{type(self).__name__} of {len(self.labels)} labels>"

    @property
    def engine(self):
        """What answers: ``binding`` or ``native``."""
        return "binding" if self._native is None else "native"

    def predict(self, text, k=1, threshold=0.0) -> list:
        """Return the at most k best labels of a text that reach the threshold, with their confidences, best first."""
        return self._predict_line(line_of(text), self._check_k(k), self._check_threshold(threshold))

    def predict_many(self, texts: Iterable, k=1, threshold=0.0, *, threads=1) -> list:
        """Return what predict() does for each of many texts, in their order."""
        if isinstance(texts, (str, bytes)):
            raise TypeError("texts must be a list of texts; predict() takes a single one")
        k = self._check_k(k)
        threshold = self._check_threshold(threshold)
        if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
            raise ValueError(f"'threads' must be an integer from 1 to {MOST_THREADS}")
        if self._native is None:
            if threads > 1:
                raise ValueError("more than one thread needs the native engine: the binding runs one at a time")
            return [self._predict_line(line_of(text), k, threshold) for text in texts]
        try:
            return self._native.score_many([line_of(text) for text in texts], k, threshold, threads, list(self.labels))
        except RuntimeError as error:
            raise EngineError(f"{type(error).__name__}: {error}") from None

    def explain(self, text):
        """Return what the winning label's score rests on, as an Explanation; needs the native engine."""
        cdef bytes line = line_of(text)
        cdef Score best
        if self._native is None:
            raise ValueError("only the native engine can explain an answer: load the model with engine=\"native\"")
        if self.score(PyBytes_AS_STRING(line), PyBytes_GET_SIZE(line), 1, 0.0, &best) == 0:
            _, tokens, ngrams, known = self._native.explain(line, 0)
            return Explanation(None, 0.0, 0.0, tuple([TokenShare(*token) for token in tokens]), ngrams, known)
        score, tokens, ngrams, known = self._native.explain(line, best.label)
        return Explanation(
            self.labels[best.label],
            best.confidence,
            score,
            tuple([TokenShare(*token) for token in tokens]),
            ngrams,
            known,
        )

    def answer(self, bytes body not None, content_type=None, *, bytes query not None=b"", max_texts=1000) -> bytes:
        """Return the JSON that answers a request's body over the wire."""
        cdef MediaKind kind = kind_of_media(content_type) if body else FORM
        if kind == FORM:
            return self.answer_form(body, query, max_texts)
        return self._answer_document({"text": body} if kind == PLAIN else read_json(body), query, max_texts)

    cdef bytes answer_form(self, bytes form, bytes query, Py_ssize_t max_texts):
        """Answer a form, the fields that it lacks taken from the query string."""
        cdef Fields fields, others
        cdef bytes source = form
        cdef Py_ssize_t k = 1
        cdef double threshold = 0.0
        find_fields(<const unsigned char*>PyBytes_AS_STRING(form), PyBytes_GET_SIZE(form), &fields)
        if PyBytes_GET_SIZE(query):
            find_fields(<const unsigned char*>PyBytes_AS_STRING(query), PyBytes_GET_SIZE(query), &others)
            if fields.texts == 0:
                source = query
                fields.text, fields.texts = others.text, others.texts
            if fields.ks == 0:
                fields.k, fields.ks = others.k, others.ks
            if fields.thresholds == 0:
                fields.threshold, fields.thresholds = others.threshold, others.thresholds
        if fields.texts == 0 or (fields.texts == 1 and fields.text.size == 0):
            raise empty_text(0, 1)
        if fields.texts > max_texts:
            raise too_many_texts(fields.texts, max_texts)
        if fields.ks:
            k = self._read_k(unquote_parameter(fields.k, fields.ks, "k"))
        if fields.thresholds:
            threshold = self._read_threshold(unquote_parameter(fields.threshold, fields.thresholds, "threshold"))
        if fields.texts == 1:
            return self._answer_value(fields.text, k, threshold)
        check_scores(fields.texts, k)
        return self._answer_lines(
            lines_of_form(<const unsigned char*>PyBytes_AS_STRING(source), PyBytes_GET_SIZE(source), fields.texts),
            k,
            threshold,
        )

    cdef bytes _answer_value(self, Span value, Py_ssize_t k, double threshold):
        """Answer a single text in its form encoding, decoded in place of a temporary object."""
        cdef unsigned char[STACK_BYTES] small
        cdef unsigned char* buffer = small
        cdef Py_ssize_t size
        cdef bytes line
        # SAFETY: decoding never lengthens a text, and the last byte is for the line feed.
        if value.size + 1 > STACK_BYTES:
            buffer = <unsigned char*>PyMem_Malloc(value.size + 1)
            if buffer == NULL:
                raise MemoryError
        try:
            size = unquote_plus(value.data, value.size, buffer)
            if seal_line(buffer, size):
                return self.answer_line(<const char*>buffer, size + 1, k, threshold)
            line = repair_line(buffer, size + 1)
            return self.answer_line(PyBytes_AS_STRING(line), PyBytes_GET_SIZE(line), k, threshold)
        finally:
            if buffer != small:
                PyMem_Free(buffer)

    cdef bytes _answer_document(self, dict document, bytes query, Py_ssize_t max_texts):
        """Answer the fields of a body that is no form, those that it lacks taken from the query string."""
        cdef Fields others
        cdef list lines
        cdef bint single
        cdef object text = document.get("text")
        cdef object k = document.get("k")
        cdef object threshold = document.get("threshold")
        find_fields(<const unsigned char*>PyBytes_AS_STRING(query), PyBytes_GET_SIZE(query), &others)
        if text is None:
            if others.texts > max_texts:
                raise too_many_texts(others.texts, max_texts)
            lines = lines_of_form(<const unsigned char*>PyBytes_AS_STRING(query), PyBytes_GET_SIZE(query), others.texts)
            single = others.texts == 1
        elif isinstance(text, bytes):
            lines = [line_of(text)]
            single = True
        else:
            if isinstance(text, list) and len(text) > max_texts:
                raise too_many_texts(len(text), max_texts)
            lines = lines_of_json(text)
            single = isinstance(text, str)
        if not lines:
            raise empty_text(0, 1)
        if k is not None:
            k = self._check_k(k)
        else:
            k = self._read_k(unquote_parameter(others.k, others.ks, "k")) if others.ks else 1
        if threshold is not None:
            threshold = self._check_threshold(threshold)
        elif others.thresholds:
            threshold = self._read_threshold(unquote_parameter(others.threshold, others.thresholds, "threshold"))
        else:
            threshold = 0.0
        if single:
            return self.answer_line(PyBytes_AS_STRING(<bytes>lines[0]), PyBytes_GET_SIZE(lines[0]), k, threshold)
        check_scores(len(lines), k)
        return self._answer_lines(lines, k, threshold)

    cdef bytes _answer_lines(self, list lines, Py_ssize_t k, double threshold):
        cdef bytes line
        cdef list replies = []
        for line in lines:
            replies.append(self.answer_line(PyBytes_AS_STRING(line), PyBytes_GET_SIZE(line), k, threshold))
        return b"[" + b",".join(replies) + b"]"

    cdef bytes answer_line(self, const char* line, Py_ssize_t size, Py_ssize_t k, double threshold):
        """Return the JSON object that answers a line."""
        cdef Py_ssize_t count
        cdef uint64_t start
        cdef Score[STACK_SCORES] few
        cdef Score* scores = few
        if k > STACK_SCORES:
            scores = <Score*>PyMem_Malloc(k * sizeof(Score))
            if scores == NULL:
                raise MemoryError
        try:
            if self.recorder == NULL:
                count = self.score(line, size, k, threshold, scores)
            else:
                start = now_ticks(self.recorder.clock)
                count = self.score(line, size, k, threshold, scores)
                record_prediction(
                    self.recorder, now_ticks(self.recorder.clock) - start, scores[0].label if count else -1
                )
            return format_scores(self._prefixes, self._longest_prefix, scores, count)
        finally:
            if scores != few:
                PyMem_Free(scores)

    cdef list _predict_line(self, bytes line, Py_ssize_t k, double threshold):
        # SAFETY: score() writes at most k scores.
        cdef Score* scores = <Score*>PyMem_Malloc(k * sizeof(Score))
        cdef Py_ssize_t i, count
        if scores == NULL:
            raise MemoryError
        try:
            count = self.score(PyBytes_AS_STRING(line), PyBytes_GET_SIZE(line), k, threshold, scores)
            return [(self.labels[scores[i].label], scores[i].confidence) for i in range(count)]
        finally:
            PyMem_Free(scores)

    cdef Py_ssize_t score(
        self, const char* line, Py_ssize_t size, Py_ssize_t k, double threshold, Score* scores
    ) except -1:
        """Put the at most k best labels of a line into ``scores``, best first. Return how many they are.

        The line ends with its only line feed; k is from 1 to the number of labels.
        """
        cdef list pairs
        cdef tuple pair
        cdef Py_ssize_t i = 0
        try:
            if self._native is not None:
                return self._native.score(line, size, k, <float>threshold, scores)
            pairs = self._predict(
                PyBytes_FromStringAndSize(line, size),
                ONE if k == 1 else k,
                ZERO if threshold == 0.0 else threshold,
                LOSSLESS,
            )
        except (MemoryError, RuntimeError, ValueError) as error:
            raise EngineError(f"{type(error).__name__}: {error}") from None
        except Exception as error:  # its message may quote the arguments, and so the text
            raise EngineError(type(error).__name__) from None
        if len(pairs) > k:
            raise EngineError("the engine gave more labels than it was asked for")
        for pair in pairs:
            scores[i] = Score(<Py_ssize_t>self._label_numbers[pair[1]], <float><double>pair[0])
            i += 1
        return i

    cdef Py_ssize_t _read_k(self, str value) except -1:
        return self._check_k(int(value) if value.isascii() and value.isdigit() and len(value) < 10 else None)

    cdef double _read_threshold(self, str value) except -1:
        try:
            if not set(value) <= THRESHOLD_CHARACTERS:
                raise ValueError
            return self._check_threshold(float(value))
        except ValueError:
            raise ValueError(THRESHOLD_RANGE) from None

    cdef Py_ssize_t _check_k(self, object k) except -1:
        if type(k) is not int or not 1 <= k <= len(self.labels):
            raise ValueError(f"param 'k' must be an integer from 1 to {len(self.labels)}, the number of labels")
        return k

    cdef double _check_threshold(self, object threshold) except -1:
        if type(threshold) not in (int, float) or not 0 <= threshold <= 1:
            raise ValueError(THRESHOLD_RANGE)
        return threshold
