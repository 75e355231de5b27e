"""What any run stands on: errors, files that are whole or not there, processes, the accelerator, signals, trackers. Knows nothing of the other rooms."""
