"""FastAPI done with care: the binding is called directly, without NumPy, and orjson writes the answer."""

import os
from urllib.parse import parse_qs

import fasttext_pybind
import orjson
from fastapi import FastAPI, Request, Response

model = fasttext_pybind.fasttext()
model.loadModel(os.environ["BENCHMARK_MODEL"])
predict = model.predict
app = FastAPI(openapi_url=None)


def reply(status, content):
    return Response(orjson.dumps(content), status, media_type="application/json")


@app.post("/inferreview")
async def infer_review(request: Request):
    form = parse_qs((await request.body()).decode())
    text = form["text"][0] if "text" in form else request.query_params.get("text")
    if not text:
        return reply(400, {"Error": "param 'text' is mandatory"})
    ((confidence, label),) = predict(text.replace("\n", " ") + "\n", 1, 0.0, "strict")
    return reply(200, {label.removeprefix("__label__") + " star": confidence})
