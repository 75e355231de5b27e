"""Where images come from, and the two views of each."""
