"""Pretraining: arguments, schedules, optimiser groups, the teacher, checkpoints, the log, the model card."""
