"""Checkpoints of every form, in and out."""
