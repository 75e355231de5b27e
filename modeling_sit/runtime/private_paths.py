"""Texts that others read, without what a path says of the user."""

import os
import re


def without_private_paths(text: str) -> str:
    """Text with `~` for the home folder, which has the user's name."""
    found = os.path.expanduser("~")
    if found == "~":  # no home folder
        return text
    for home in {found, os.path.realpath(found)} - {"/"}:
        text = re.sub(rf"(?<![\w.~/-]){re.escape(home)}(?![\w.-])", "~", text)
    return text
