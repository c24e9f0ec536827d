"""Forms become lines as Falcon decodes forms."""

import re

import pytest
from falcon.uri import parse_query_string
from hypothesis import given
from hypothesis import strategies as st

from pyserve._inference import parse_form
from tests.support import expected_line


@pytest.mark.parametrize(
    ("form", "lines"),
    [
        (b"text=I+love+this+product", [b"I love this product\n"]),
        (b"text=I%20love%2bthis", [b"I love+this\n"]),
        (b"a=1&text=x&b=2", [b"x\n"]),
        (b"text=a&text=b&text=c", [b"a\n", b"b\n", b"c\n"]),
        (b"text=a=b", [b"a=b\n"]),
        (b"text=a;b", [b"a;b\n"]),
        (b"text=a,b", [b"a,b\n"]),
        (b"%74ext=escaped+name", [b"escaped name\n"]),
        (b"%74%65%78%74=a", [b"a\n"]),
        (b"te+xt=a&TEXT=b&text2=c&ext=d", []),
        (b"&&text=a&&", [b"a\n"]),
        (b"text=100%", [b"100%\n"]),
        (b"text=100%2", [b"100%2\n"]),
        (b"text=%zz%4", [b"%zz%4\n"]),
        (b"text=%%41", [b"%A\n"]),
        (b"text=%2541", [b"%41\n"]),
        (b"text=%e2%82%ac", ["€\n".encode()]),
        ("text=€".encode(), ["€\n".encode()]),
        (b"text=%f0%9f%98%80", ["😀\n".encode()]),
        (b"text=%ff", ["\ufffd\n".encode()]),
        (b"text=%ed%a0%80", ["\ufffd\ufffd\ufffd\n".encode()]),
        (b"text=%e2%82", ["\ufffd\n".encode()]),
        (b"text=a\xe9b", ["a\ufffdb\n".encode()]),
        (b"text=a%0Ab%0D%0Ac", [b"a b\r c\n"]),
        (b"text=a\nb", [b"a b\n"]),
        (b"text=good%00bad", [b"good\0bad\n"]),
        (b"text=good+%3C/s%3E+bad", [b"good      bad\n"]),
        (b"text=</s>", [b"    \n"]),
        (b"text=</s>%0a</s>", [b"         \n"]),
        (b"text=a</s>+</s>b+<</s>", [b"a</s> </s>b <</s>\n"]),
        (b"text=+", [b" \n"]),
        (b"", []),
        (b"text", None),
        (b"text=", None),
        (b"text=a&text=&text=b", None),
    ],
)
def test_parse_form_lines(form: bytes, lines: list[bytes] | None) -> None:
    if lines is None:
        with pytest.raises(ValueError, match=r"param 'text' (is mandatory|must not be empty)"):
            parse_form(form)
    else:
        assert parse_form(form)[0] == lines


@pytest.mark.parametrize(
    ("form", "k", "threshold"),
    [
        (b"text=a", None, None),
        (b"k=2&text=a&threshold=0.5", "2", "0.5"),
        (b"k=&threshold", "", ""),
        (b"%6B=%32&th%72eshold=%2b1", "2", "+1"),
        (b"%74%68%72%65%73%68%6F%6C%64=1", None, "1"),
        (b"%74%68%72%65%73%68%6F%6C%64%20=1", None, None),
    ],
)
def test_parse_form_parameters(form: bytes, k: str | None, threshold: str | None) -> None:
    assert parse_form(form)[1:] == (k, threshold)


@pytest.mark.parametrize("name", ["k", "threshold"])
def test_parse_form_parameter_twice(name: str) -> None:
    with pytest.raises(ValueError, match=f"param '{name}' must be given only once"):
        parse_form(f"{name}=1&text=a&{name}=1".encode())


def test_parse_form_long_value() -> None:
    assert parse_form(b"text=" + b"%41+" * 300_000) == ([b"A " * 300_000 + b"\n"], None, None)


def test_parse_form_type() -> None:
    with pytest.raises(TypeError):
        parse_form("text=a")  # type: ignore[arg-type]


# fmt: off
pieces = st.sampled_from([
    b"text", b"k", b"threshold", b"=", b"&", b"+", b"%", b"%4", b"%41", b"%0a", b"%zZ", b"%e2%82%ac", b"%C3",
    b"%ED%A0%80", b"\n", b"\0", b"</s>", b"%3c/s>", b" ", b"%74ext=", b"&text=", b"\xc3\xa9", b"\xf4\x90\x80\x80",
    b"a", b",", b";",
])
# fmt: on
forms = st.lists(st.one_of(pieces, st.binary(max_size=4)), max_size=24).map(b"".join)


@given(forms)
def test_parse_form_like_falcon(form: bytes) -> None:
    # Falcon takes ASCII only; a byte and its escape mean the same.
    ascii_form = re.sub(rb"[\x80-\xff]", lambda match: b"%%%02X" % match[0][0], form).decode("ascii")
    fields = parse_query_string(ascii_form, keep_blank=True, csv=False)

    def values(name: str) -> list[str]:
        value = fields.get(name, [])
        return value if isinstance(value, list) else [value]

    if len(values("k")) > 1 or len(values("threshold")) > 1 or "" in values("text"):
        with pytest.raises(ValueError, match="param '"):
            parse_form(form)
    else:
        lines, k, threshold = parse_form(form)
        assert lines == [expected_line(text) for text in values("text")]
        assert [k] == (values("k") or [None])
        assert [threshold] == (values("threshold") or [None])


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_parse_form_of_urlencode(text: str) -> None:
    from urllib.parse import urlencode

    assert parse_form(urlencode({"text": text}).encode())[0] == [expected_line(text)]
