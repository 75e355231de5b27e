#!/usr/bin/env python
"""`modeling-sit tile` as a file, by its old name."""

import sys

from modeling_sit.cli.main import main

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose evaluate.py hides the library of that name
    main(["tile", *sys.argv[1:]])
