"""Serve a fastText classifier over HTTP.

>>> from pyserve import create_app, load_model
>>> classifier = load_model("models/amazon_review_full.ftz")
>>> classifier.predict("I love this product")
[('5 star', 0.754497230052948)]
>>> app = create_app(classifier)  # plain WSGI, for any server
"""

__version__ = "0.1.0"

try:
    from pyserve._inference import Classifier
except ModuleNotFoundError:
    raise ImportError(
        "pyserve's compiled modules are missing: in a checkout, run `make build`; elsewhere, install pyserve again"
    ) from None

from pyserve.app import create_app
from pyserve.model import ModelError, describe_model, load_model

__all__ = ["Classifier", "ModelError", "create_app", "describe_model", "load_model"]
