#!/usr/bin/env python
"""`modeling-sit pretrain` as a file, for `accelerate launch`."""

import sys

from modeling_sit.cli.main import main

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose evaluate.py hides the library of that name
    main(["pretrain", *sys.argv[1:]])
