"""Terminals that cannot show every character."""

import sys


def print_any_character() -> None:
    """Print a question mark for a character that the terminal's encoding lacks, such as the plus-minus sign on one of
    ASCII, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        # A stream that a notebook or a test puts in place of the terminal may take any text.
        if hasattr(stream, "reconfigure") and stream.errors != "backslashreplace":
            stream.reconfigure(errors="replace")
