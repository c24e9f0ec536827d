"""The bodies that bjoern fills, held against ``io.BytesIO``."""

import gc
import io
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyserve import _body

READS = st.one_of(
    st.tuples(st.just("read"), st.one_of(st.none(), st.integers(-2, 40), st.just(2**70))),
    st.tuples(st.just("readline"), st.one_of(st.none(), st.integers(-2, 40))),
    st.tuples(st.just("readlines"), st.one_of(st.none(), st.integers(-2, 40))),
    st.tuples(st.just("seek"), st.integers(0, 60)),
    st.tuples(st.just("tell"), st.none()),
)


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    _body.set_limits(1000, 3000)
    yield
    _body.set_limits(1 << 20, 128 << 20)


def make(*chunks: bytes) -> _body.Body:
    """A body that arrived in chunks, as bjoern makes it."""
    body = _body.IO().BytesIO()
    for chunk in chunks:
        assert body.write(chunk) == len(chunk)
    if chunks:
        body.seek(0)
    return body


@given(st.lists(st.binary(max_size=30), max_size=4), st.lists(READS, max_size=6))
def test_body_reads_like_bytesio(chunks: list[bytes], reads: list[tuple[str, object]]) -> None:
    body, oracle = make(*chunks), io.BytesIO(b"".join(chunks))
    for name, argument in reads:
        arguments = [] if name == "tell" else [argument]
        if argument == 2**70:
            arguments, expected = [argument], oracle.read()
        else:
            expected = getattr(oracle, name)(*arguments)
        assert getattr(body, name)(*arguments) == expected
    assert list(body) == list(oracle)


def test_body_at_the_limit_is_kept() -> None:
    body = make(b"a" * 999, b"b")
    assert body.read() == b"a" * 999 + b"b"
    assert (body.received, len(body), body.over_limit) == (1000, 1000, False)


def test_body_over_the_limit_is_dropped() -> None:
    kept = _body.kept_bytes()
    body = make(b"a" * 999, b"bb", b"c" * 5000)
    assert body.over_limit
    assert not body.over_budget
    assert (body.received, len(body), body.read()) == (6001, 0, b"")
    assert _body.kept_bytes() == kept


def test_bodies_over_the_budget_are_dropped() -> None:
    gc.collect()
    free = 3000 - _body.kept_bytes()
    bodies = [make(b"a" * 1000) for _ in range(free // 1000)]
    late = make(b"b" * 600, b"b" * 400)
    assert late.over_budget
    assert (late.received, len(late), late.read()) == (1000, 0, b"")
    assert not any(body.over_budget for body in bodies)
    del bodies[0]
    assert make(b"c" * 1000).read() == b"c" * 1000


def test_kept_bytes_are_given_back() -> None:
    before = _body.kept_bytes()
    for _ in range(10_000):
        make(b"a" * 500, b"b" * 400)
    assert _body.kept_bytes() == before


@pytest.mark.parametrize("chunk", ["text", None, bytearray(b"a")])
def test_body_takes_bytes_alone(chunk: object) -> None:
    with pytest.raises(TypeError):
        make().write(chunk)  # type: ignore[arg-type]
