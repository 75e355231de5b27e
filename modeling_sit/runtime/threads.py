"""The threads of PyTorch on a CPU."""

import os

import joblib
import torch


def use_allowed_cores() -> None:
    """Have PyTorch use no more threads than there are cores for this process, unless the user gave a number of threads.

    By itself PyTorch takes a thread for each core of the machine, also in a container that may use the time of two cores only.
    Then its threads wait for each other. joblib counts what the container allows, too.
    """
    if not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys():
        torch.set_num_threads(min(torch.get_num_threads(), joblib.cpu_count()))
