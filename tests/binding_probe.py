"""Ask the binding about damaged copies of a model, each in a process of its own that may crash or hang.

Reads a JSON object from standard input: "model" (path), "patches" (lists of [offset, byte value]), "texts", "seconds"
(limit for each). Writes one JSON value per patch to standard output: a list of answers, or a text that says how the
process ended.
"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import fasttext_pybind


def answer(model_path: str, texts: list[str]) -> list[list[tuple[str, str]]]:
    """Predict every text; probabilities are hexadecimal so that no bit is lost."""
    model = fasttext_pybind.fasttext()
    model.loadModel(model_path)
    predictions = [model.predict(text, -1, 0.0, "surrogateescape") for text in texts]
    return [[(probability.hex(), label) for probability, label in prediction] for prediction in predictions]


def probe(model_path: str, texts: list[str], seconds: int) -> object:
    """Run answer() in a forked process and return what it said or how it ended."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        signal.alarm(seconds)
        try:
            said = json.dumps(answer(model_path, texts))
        except Exception as error:
            said = json.dumps(f"raised {type(error).__name__}")
        with os.fdopen(send, "w") as pipe:
            pipe.write(said)
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(said) if os.WIFEXITED(status) else f"killed by signal {os.WTERMSIG(status)}"


def main() -> None:
    """Serve one request from standard input."""
    request = json.load(sys.stdin)
    intact = Path(request["model"]).read_bytes()
    with tempfile.TemporaryDirectory() as directory:
        damaged = Path(directory) / "model"
        for patches in request["patches"]:
            content = bytearray(intact)
            for offset, value in patches:
                content[offset] = value
            damaged.write_bytes(content)
            print(json.dumps(probe(str(damaged), request["texts"], request["seconds"])), flush=True)


if __name__ == "__main__":
    main()
