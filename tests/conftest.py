"""What the tests of the programs share: how to run one in this process, tiny models, and images."""

import gc
import importlib.util
import io
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from functools import partial, wraps
from multiprocessing import resource_sharer
from pathlib import Path
from types import SimpleNamespace

# Before anything imports the Hub's client: no test needs the network, and none should wait for it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# torchao, where it is installed, has PyTorch warn of itself in every program that imports transformers.
os.environ.setdefault("TORCH_LOGS", "-torch.utils._pytree")

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState
from disk import check_descriptor

from modeling_sit import SiTConfig, SiTForPreTraining, SiTImageProcessor
from modeling_sit.cli.main import COMMANDS, main
from modeling_sit.data import dataset_forms, opening
from modeling_sit.hub import card_writing

SCRIPTS = Path(__file__).parents[1] / "scripts"
# Files of that folder that are called otherwise than their commands.
COMMAND_NAMES = {
    "compare_methods": "compare-methods",
    "convert_checkpoint": "convert",
    "push_to_hub": "push",
    "tile_images": "tile",
    "tile_pictures": "tile",
}

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "decoder_hidden_size": 16,
    "projection_hidden_size": 16,
    "projection_size": 16,
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Half as many again as there are cores: a quarter of the time a worker waits for processes that it started."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores * 3 // 2


def pytest_collection_finish() -> None:
    """Spare the garbage collector the libraries: each training run asks it for a full collection, and so does `datasets`
    whenever a parquet file is left half read."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def digits_once():
    """The 1,797 digits are encoded as PNG at the first run of a process, not at each of hundreds."""
    load, loaded = dataset_forms._load_digits, {}

    @wraps(load)
    def load_once():
        if not loaded:
            loaded.update(load())
        return dict(loaded)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_forms, "_load_digits", load_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """`os.fsync` returns at once. A tiny run calls it 40 times, and waits twice as long for it as it computes; it is of use
    where the power fails, which no test sees. Tests of what is synced, and when, look at the calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", check_descriptor)
        yield


@pytest.fixture(scope="session", autouse=True)
def curves_once():
    """The chart of a run's losses, a third of the time of a tiny run, is drawn at the first run of a process that has these
    losses; later runs take its file. What it shows is tested in `visualization/test_charts.py`."""
    draw, files = card_writing.curves_figure, {}

    def draw_once(lines, titles):
        shown = tuple(title for name, title in titles.items() if any(line.get(name) for line in lines))
        if shown and shown not in files:
            buffer = io.BytesIO()
            draw(lines, titles).savefig(buffer, dpi=110, format="png")
            files[shown] = buffer.getvalue()
        return SimpleNamespace(savefig=lambda path, **_: Path(path).write_bytes(files[shown])) if shown else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card_writing, "curves_figure", draw_once)
        yield


@pytest.fixture
def tiny_config():
    """Make the configuration of a model that takes milliseconds a step, with other fields on request."""
    return lambda **fields: SiTConfig(**{**TINY, **fields})


@pytest.fixture
def save_tiny_sit(tiny_config):
    """Write a pretrained model's folder as `scripts/pretrain.py` leaves it, with random weights."""

    def save(folder: Path, seed: int = 0, **fields) -> Path:
        torch.manual_seed(seed)
        config = tiny_config(**fields)
        SiTForPreTraining(config).save_pretrained(folder)
        grey = {"image_mean": [0.5], "image_std": [0.5]} if config.num_channels == 1 else {}
        size = {"height": config.image_shape[0], "width": config.image_shape[1]}
        SiTImageProcessor(size=size, patch_size=config.patch_size, **grey).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def ipython(tmp_path, monkeypatch):
    """IPython in this process, as a console has it: what is shown can be captured."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))
    # What it changes in the process.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    InteractiveShell.clear_instance()
    yield InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    InteractiveShell.clear_instance()


@pytest.fixture
def page():
    """[`rendering.render`]."""
    from rendering import render

    return render


@pytest.fixture
def save_images():
    """Write random PNG images of 24 x 20 pixels, called `00.png`, `01.png` and so on, into a folder."""

    def save(folder: Path, count: int, seed: int = 0) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(seed)
        for number in range(count):
            pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(folder / f"{number:02}.png")
        return folder

    return save


@pytest.fixture
def load_program(monkeypatch):
    """Import a program of `scripts/` by its name; those that it imports are found too."""
    # Behind the installed packages, for scripts/evaluate.py has the name of one.
    monkeypatch.setattr(sys, "path", [*sys.path, str(SCRIPTS), str(SCRIPTS / "benchmarks")])

    def load(name: str):
        known_as = "evaluate_program" if name == "evaluate" else name  # the other name is the library's
        if known_as not in sys.modules:
            spec = importlib.util.spec_from_file_location(known_as, SCRIPTS / f"{name}.py")
            module = importlib.util.module_from_spec(spec)
            sys.modules[known_as] = module
            spec.loader.exec_module(module)
        return sys.modules[known_as]

    return load


@pytest.fixture
def run_program(load_program, monkeypatch):
    """Run a program of `scripts/`, or a command, in this process with these flags; gives its exit code."""
    verbosity = transformers.logging.get_verbosity()

    def run(name: str, *flags) -> int:
        command, flags = COMMAND_NAMES.get(name, name), [str(flag) for flag in flags]
        monkeypatch.setattr(sys, "argv", [str(SCRIPTS / f"{name}.py"), *flags])
        program = partial(main, [command, *flags]) if command in COMMANDS else load_program(name).main
        forget_accelerator()
        try:
            program()
        except SystemExit as end:
            return end.code
        return 0

    yield run
    forget_accelerator()
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


@pytest.fixture
def forget_accelerators():
    """[`forget_accelerator`], for tests that start several runs in this process; it is called at the end, too."""
    yield forget_accelerator
    forget_accelerator()


def forget_accelerator() -> None:
    """A process has one Accelerate state, which the first `Accelerator` settles: the next test needs one of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def one_line_error(run_program, capsys):
    """Run a program that has to fail for a user's mistake; gives the one line that it says, after `error: `."""

    def run(name: str, *flags, code: int = 1) -> str:
        capsys.readouterr()
        assert run_program(name, *flags) == code
        stderr = capsys.readouterr().err
        assert "Traceback" not in stderr
        # A progress bar starts its lines anew by a carriage return; an error stands on a line of its own.
        errors = [line for line in stderr.splitlines() if "error:" in line]
        assert len(errors) == 1, stderr
        assert errors[0].startswith("error: "), stderr
        return errors[0].removeprefix("error: ")

    return run


@pytest.fixture
def long_temporary_folder(tmp_path, monkeypatch) -> Path:
    """Temporary files go into a folder whose path is too long for a socket."""
    folder = tmp_path / ("scratch_job_" * 10)
    folder.mkdir()
    resource_sharer.stop(1)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)
    yield folder
    multiprocessing.current_process()._config.pop("tempdir", None)


@pytest.fixture
def hanging_workers(monkeypatch) -> list:
    """In dataloader workers, an image is never decoded: the read does not return, whatever signal comes. What is put into
    the list is called before."""
    decode, acts = opening.open_image, []

    def open_in_worker(*args, **kwargs):
        if torch.utils.data.get_worker_info() is not None:
            for act in acts:
                act()
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            time.sleep(1000)
        return decode(*args, **kwargs)

    monkeypatch.setattr(opening, "open_image", open_in_worker)
    return acts
