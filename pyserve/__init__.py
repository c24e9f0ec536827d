"""Serve a fastText classifier over HTTP."""

__version__ = "0.1.0"
