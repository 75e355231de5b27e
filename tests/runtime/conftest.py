"""Results of two processes on the CPU, launched once for all the tests that look at them."""

import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from forked_python import ForkedPython

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
CONFIGS = REPOSITORY / "scripts" / "accelerate_configs"


def launch(config: str, flags: list[str], command: list[str], log: Path) -> ForkedPython:
    """`accelerate launch` with a ready configuration, on the CPU: what goes through it is set up as it would be on GPUs."""
    paths = [str(REPOSITORY), str(HERE.parent / "finetuning"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config), *flags]
    return ForkedPython([*launcher, *command], log, environment=environment)


def torchrun(command: list[str], log: Path) -> ForkedPython:
    """`torchrun` with two processes, on a machine without GPUs, as a user types it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return ForkedPython([*launcher, *command], log, environment=environment)


def wait_for(*launched: ForkedPython) -> None:
    for process in launched:
        process.start()
    try:
        for process in launched:
            assert process.wait(timeout=300) == 0, process.said
    finally:
        for process in launched:
            process.terminate()  # a launcher that is killed leaves those running that it started
            process.wait(timeout=30)


@pytest.fixture(scope="session")
def launch_once(tmp_path_factory):
    """Launch, or take the results of the launch that another worker of pytest-xdist has made."""

    def results(name: str, start) -> list[dict]:
        # Without xdist the workers' folder is the session's own.
        root = tmp_path_factory.getbasetemp()
        root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
        folder = root / name
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                folder.mkdir()
                try:
                    wait_for(*start(folder))
                except BaseException:
                    shutil.rmtree(folder)  # another worker launches again, and reads no half of the results
                    raise
        return [torch.load(folder / f"process-{process}.pt", weights_only=True) for process in range(2)]

    return results


@pytest.fixture(scope="session")
def replicated(launch_once) -> list[dict]:
    """Both processes' results on one machine, each with the whole model: `multi_gpu.yaml`."""

    def start(folder: Path) -> list[ForkedPython]:
        command = [str(HERE / "two_processes.py"), "gather,batch_norm,gradients,methods,measures,runs", str(folder)]
        return [launch("multi_gpu.yaml", ["--num_processes", "2"], command, folder / "log")]

    return launch_once("replicated", start)


@pytest.fixture(scope="session")
def sharded(launch_once) -> list[dict]:
    """Both processes' results with half of each weight: `fsdp2.yaml`."""

    def start(folder: Path) -> list[ForkedPython]:
        command = [str(HERE / "fsdp2_on_cpu.py"), str(HERE / "two_processes.py"), "methods,runs", str(folder)]
        return [launch("fsdp2.yaml", ["--num_processes", "2"], command, folder / "log")]

    return launch_once("sharded", start)


@pytest.fixture(scope="session")
def on_two_machines(launch_once) -> list[dict]:
    """The results of one process on each of two machines, both of which are this one: `multi_node.yaml`."""

    def start(folder: Path) -> list[ForkedPython]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            flags = ["--num_processes", "2", "--main_process_port", str(free.getsockname()[1])]
        command = [str(HERE / "two_processes.py"), "gather", str(folder)]
        return [
            launch("multi_node.yaml", [*flags, "--machine_rank", str(rank)], command, folder / f"log-{rank}")
            for rank in range(2)
        ]

    return launch_once("on_two_machines", start)


@pytest.fixture(scope="session")
def without_gpus(launch_once) -> list[dict]:
    """Both processes' results on a machine without GPUs, which no environment variable tells to use its CPU."""

    def start(folder: Path) -> list[ForkedPython]:
        return [torchrun([str(HERE / "two_processes.py"), "gather,later_runs", str(folder)], folder / "log")]

    return launch_once("without_gpus", start)
