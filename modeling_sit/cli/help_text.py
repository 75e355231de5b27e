"""How `--help` is laid out."""

import argparse


class ExampleHelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Text before and after the flags stays as it is written, with its lines of example commands; flags tell their
    defaults."""
