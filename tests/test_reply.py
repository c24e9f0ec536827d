"""Replies are JSON that says what the model said."""

import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyserve._inference import EngineError, format_number, format_reply

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)


def as_float32(bits: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return value


def expected_number(number: float) -> bytes:
    """C's ``%.10f`` without trailing zeros."""
    text = f"{number:.10f}".rstrip("0").rstrip(".")
    return b"0" if text == "-0" else text.encode()


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0.7544972300529480, b"0.7544972301"),
        (1.0000100135803223, b"1.0000100136"),
        (1.0, b"1"),
        (0.0, b"0"),
        (-0.0, b"0"),
        (0.5, b"0.5"),
        (1e-10, b"0.0000000001"),
        (4e-11, b"0"),
        (-1e-12, b"0"),
        (0.1, b"0.1000000015"),
        (-2.5, b"-2.5"),
        (536870912.0, b"536870912"),
        (3.4028234663852886e38, b"340282346638528859811704183484516925440"),
        (-3.4028234663852886e38, b"-340282346638528859811704183484516925440"),
    ],
)
def test_format_number(number: float, expected: bytes) -> None:
    assert format_number(number) == expected


def test_format_number_at_every_exponent() -> None:
    mantissas = [0, 1, 2, 0x3FFFFF, 0x400000, 0x400001, 0x555555, 0x7FFFFE, 0x7FFFFF]
    for exponent in range(255):
        for mantissa in mantissas:
            for sign in (0, 1):
                number = as_float32(sign << 31 | exponent << 23 | mantissa)
                assert format_number(number) == expected_number(number), number


@given(float32s)
def test_format_number_like_printf(number: float) -> None:
    assert format_number(number) == expected_number(number)
    assert math.isclose(json.loads(format_number(number)), number, rel_tol=1e-15, abs_tol=5.0000001e-11)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e300])
def test_format_number_not_finite(number: float) -> None:
    with pytest.raises(EngineError, match="not a finite number"):
        format_number(number)
    with pytest.raises(EngineError, match="not a finite number"):
        format_reply([("a", 0.5), ("b", number)])


def test_format_reply_article() -> None:
    assert format_reply([("5 star", 0.754497230052948)]) == b'{"5 star":0.7544972301}'


def test_format_reply_none() -> None:
    assert format_reply([]) == b"{}"


def test_format_reply_longer_than_the_stack() -> None:
    pairs = [(f"label {i}" * 20, 1 / (i + 1)) for i in range(500)]
    assert list(json.loads(format_reply(pairs))) == [label for label, _ in pairs]


@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), float32s), unique_by=lambda pair: pair[0]))
def test_format_reply_like_json(pairs: list[tuple[str, float]]) -> None:
    reply = format_reply(pairs)
    numbers = {label: json.loads(expected_number(number)) for label, number in pairs}
    assert (
        reply
        == b"{"
        + b",".join(
            json.dumps(label, ensure_ascii=False).encode() + b":" + expected_number(number) for label, number in pairs
        )
        + b"}"
    )
    assert json.loads(reply) == numbers
    assert list(json.loads(reply)) == [label for label, _ in pairs]


@given(st.text())
def test_format_reply_escapes_labels(label: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in label):
        with pytest.raises(UnicodeEncodeError):
            format_reply([(label, 0.5)])
    else:
        assert json.loads(format_reply([(label, 0.5)])) == {label: 0.5}
