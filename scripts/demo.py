#!/usr/bin/env python
"""`modeling-sit demo` as a file."""

import sys

from modeling_sit.cli.main import main

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose evaluate.py hides the library of that name
    main(["demo", *sys.argv[1:]])
