"""The article's server, written anew: Falcon, the fasttext wrapper and ujson, on bjoern unless something else runs it.

Two things differ from a server of 2018, because today's packages force them: Falcon 4 calls the text of an answer
``text`` and parses forms only when asked, and the wrapper's ``predict`` cannot make its array under NumPy 2.
"""

import os
import sys
import warnings
from types import SimpleNamespace

import falcon
import fasttext
import numpy as np
import ujson

warnings.simplefilter("ignore", falcon.util.deprecation.DeprecatedWarning)


def array(values, copy=True):
    """Make an array as NumPy 1 did: ``copy=False`` copies where it must."""
    return np.array(values) if copy else np.asarray(values)


fasttext.FastText.np = SimpleNamespace(**{**vars(np), "array": array})


class InferReview:
    def __init__(self, model):
        self.model = model

    def on_post(self, req, resp):
        text = req.get_param("text")
        if not text:
            resp.status = falcon.HTTP_400
            resp.text = ujson.dumps({"Error": "param 'text' is mandatory"})
            return
        labels, confidences = self.model.predict(text)
        stars = labels[0].replace("__label__", "") + " star"
        resp.text = ujson.dumps({stars: float(confidences[0])})


def create_app(model_path):
    app = falcon.App()
    app.req_options.auto_parse_form_urlencoded = True
    app.add_route("/inferreview", InferReview(fasttext.load_model(model_path)))
    return app


if __name__ == "__main__":
    import bjoern

    bjoern.run(create_app(sys.argv[1]), "127.0.0.1", int(sys.argv[2]))
else:
    app = create_app(os.environ["BENCHMARK_MODEL"])
