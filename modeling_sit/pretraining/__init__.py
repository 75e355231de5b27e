"""Pretraining: the run, its loop, the methods, schedules, checkpoints, monitors."""
