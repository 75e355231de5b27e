"""Experiments of many runs: what is compared, the runs of it, and tables and charts of their results."""
