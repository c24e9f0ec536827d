"""JSON bodies become lines, or an error that says what is allowed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyserve._inference import parse_json
from tests.support import expected_line

texts = st.text(min_size=1)  # lone surrogates included: json writes them as escapes


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"text": "a"}', ([b"a\n"], None, None)),
        ('{"text": ["a", "b"], "k": 2, "threshold": 0.5}', ([b"a\n", b"b\n"], 2, 0.5)),
        ('{"text": "a", "other": {"text": 1}}', ([b"a\n"], None, None)),
        ('{"text": "x", "text": "y"}', ([b"y\n"], None, None)),
        ('{"text": "a\\nb </s> c\\u0000"}', ([b"a b      c\0\n"], None, None)),
        ('{"text": "\\ud83d\\ude00 \\ud800 \\udc00"}', (["😀 \ufffd \ufffd\n".encode()], None, None)),
        ('{"text": "é😀"}', (["é😀\n".encode()], None, None)),
        ('{"text": []}', ([], None, None)),
        ("{}", ([], None, None)),
    ],
)
def test_parse_json(body: str, expected: object) -> None:
    assert parse_json(body.encode()) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "error at line 1, column 1"),
        (b'{"text": secret}', "error at line 1, column 10"),
        (b'{"text":\n"a"', "error at line 2, column 4"),
        (b'{"text": "a"} x', "error at line 1, column 15"),
        (b'{"text": "\xff"}', "must be UTF-8"),
        (b'\xef\xbb\xbf{"text": "a"}', "byte order mark"),
        ('{"text": "a"}'.encode("utf-16"), "must be UTF-8"),
        (b'{"text": NaN}', "NaN, Infinity"),
        (b'{"k": -Infinity}', "NaN, Infinity"),
        (b'{"k": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"text":' * 100_000, "nested too deeply"),
        (b'["a"]', "must be an object"),
        (b'"a"', "must be an object"),
        (b"null", "must be an object"),
        (b'{"text": 1}', "must be a string or a list of strings"),
        (b'{"text": {"a": 1}}', "must be a string or a list of strings"),
        (b'{"text": ["a", 1]}', "must be a string or a list of strings"),
        (b'{"text": ["a", null]}', "must be a string or a list of strings"),
        (b'{"text": ""}', "param 'text' is mandatory"),
        (b'{"text": ["a", ""]}', "text 2 of 2 is"),
    ],
)
def test_parse_json_refused(body: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(body)
    assert "secret" not in str(caught.value)


@given(st.one_of(texts, st.lists(texts)), st.booleans())
def test_parse_json_of_json(text: str | list[str], ensure_ascii: bool) -> None:
    document = json.dumps({"text": text}, ensure_ascii=ensure_ascii)
    try:
        body = document.encode()
    except UnicodeEncodeError:
        body = json.dumps({"text": text}).encode()
    # A pair of surrogates, each written as an escape, is one character.
    meant = json.loads(body)["text"]
    assert parse_json(body)[0] == [expected_line(item) for item in (meant if isinstance(meant, list) else [meant])]


@given(st.binary(max_size=40))
def test_parse_json_garbage(body: bytes) -> None:
    try:
        document = json.loads(body.decode())
    except ValueError:
        document = None
    if not isinstance(document, dict):
        with pytest.raises(ValueError, match=r"the (JSON )?body"):
            parse_json(body)
