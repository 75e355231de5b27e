"""What any run stands on: errors, files that are complete or not there, processes, the accelerator, signals, trackers.
Knows nothing of the other rooms."""
