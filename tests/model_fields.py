"""A second reader of the model format, to damage files on purpose."""

import struct


def header_fields(content: bytes) -> dict[str, tuple[int, int]]:
    """Find offset and size of every field that is not a word, a cell or a code, with a second reader."""
    fields: dict[str, tuple[int, int]] = {}
    position = 0

    def take(name: str, code: str) -> int:
        nonlocal position
        size = struct.calcsize("<" + code)
        fields[name] = (position, size)
        (value,) = struct.unpack_from("<" + code, content, position)
        position += size
        return int(value)

    for name in (
        "magic",
        "version",
        "dim",
        "ws",
        "epoch",
        "minCount",
        "neg",
        "wordNgrams",
        "loss",
        "model",
        "bucket",
        "minn",
    ):
        take(name, "i")
    take("maxn", "i")
    take("lrUpdateRate", "i")
    take("t", "d")
    entries = take("size", "i")
    take("nwords", "i")
    take("nlabels", "i")
    take("ntokens", "q")
    pruned = take("pruneidx_size", "q")
    for _ in range(entries):
        position = content.index(0, position) + 1 + 8 + 1
    position += 8 * max(pruned, 0)

    def take_quantizer(prefix: str) -> None:
        nonlocal position
        dim = take(f"{prefix}.pq.dim", "i")
        for name in ("nsubq", "dsub", "lastdsub"):
            take(f"{prefix}.pq.{name}", "i")
        position += dim * 256 * 4

    def take_matrix(prefix: str, quantized: bool) -> None:
        nonlocal position
        qnorm = take(f"{prefix}.qnorm", "b") if quantized else 0
        rows = take(f"{prefix}.rows", "q")
        columns = take(f"{prefix}.columns", "q")
        if not quantized:
            position += rows * columns * 4
            return
        codes = take(f"{prefix}.codesize", "i")
        position += codes
        take_quantizer(prefix)
        if qnorm:
            position += rows
            take_quantizer(f"{prefix}.norm")

    quantized = take("quantized", "b")
    take_matrix("input", bool(quantized))
    qout = take("qout", "b")
    take_matrix("output", bool(quantized and qout))
    assert position == len(content)
    return fields
