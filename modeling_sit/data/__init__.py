"""Where pictures come from, and the two views of each."""
