"""``python -m pyserve`` is the command ``pyserve``."""

from pyserve.cli import main

if __name__ == "__main__":
    main(prog_name="pyserve")
