"""Datasets for dense tasks: objects with boxes and masks, and images with a class for each pixel."""
