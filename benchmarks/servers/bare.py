"""Our application on plain bjoern: no process manager, no guards, no counters, and no part of bjoern replaced."""

import sys

import bjoern

from pyserve import create_app, load_model

if __name__ == "__main__":
    app = create_app(load_model(sys.argv[1]))
    bjoern.run(app.handle, "127.0.0.1", int(sys.argv[2]))
