"""Plain bjoern with an application that answers the same bytes whatever it is asked."""

import sys

import bjoern

REPLY = b'{"5 star":0.6969632506}'
HEADERS = [("content-length", str(len(REPLY))), ("content-type", "application/json")]


def app(environ, start_response):
    start_response("200 OK", HEADERS)
    return [REPLY]


if __name__ == "__main__":
    bjoern.run(app, "127.0.0.1", int(sys.argv[1]))
