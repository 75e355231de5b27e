"""Tests do not wait for the disk."""

import os


def check_descriptor(file) -> None:
    """In place of `os.fsync`: an error for what is no open file, and no waiting for the disk."""
    os.fstat(file if isinstance(file, int) else file.fileno())
