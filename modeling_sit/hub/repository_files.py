"""The files of an output folder that go to the Hub: those of the model, not everything that lies there."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from transformers.dynamic_module_utils import get_relative_import_files

from modeling_sit.runtime.errors import SiTError

CONFIG, PROCESSOR, CARD = "config.json", "preprocessor_config.json", "README.md"
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
LOGS = ("metrics.jsonl", "monitors.jsonl")
# Files that are written at the end of a run; before that, the folder may have those of an earlier run.
CARD_AND_RESULTS = (CARD, "eval_results.json", "LICENSE*")
SHOWN_IMAGES = re.compile(r"""!\[[^\]]*\]\(\s*(?:<([^>]+)>|([^)\s]+))|<img\s[^>]*?src=["']([^"']+)""")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg")

CHECKPOINT_FOLDERS = LAST_CHECKPOINT, BEST_CHECKPOINT = "last-checkpoint", "best-checkpoint"
# By these names of files, a folder's checkpoints are known without the code of the runs that write them.
PRETRAINING_CHECKPOINT, FINETUNING_CHECKPOINT = "checkpoints/step-*", "checkpoint-*"
# transformers' `Trainer` writes this file last, so a checkpoint that has it is complete.
TRAINER_STATE, TRAINING_WEIGHTS = "trainer_state.json", "training_weights.safetensors"
# `Trainer`'s pickle of its arguments, which nothing is restored from.
NOT_OF_CHECKPOINTS = ("training_args.bin",)
MAX_COPIED_BYTES = 1 << 20


def find_model_files(folder: Path, is_finished: bool = True) -> dict[str, Path]:
    """The files of a model repository: weights, configuration, image processor, code, logs; of a finished run also the
    results, and the card with the images that it shows.

    Args:
        folder (`Path`): The output folder of a run.
        is_finished (`bool`, *optional*, defaults to `True`): Whether card and results are about these weights.

    Returns:
        `dict[str, Path]`: Each file by its path in the repository.

    Raises:
        [`SiTError`]: If the folder holds no model that can be loaded.
    """
    weights = _matching(folder, WEIGHTS)
    for name, is_there in ((CONFIG, (folder / CONFIG).is_file()), (WEIGHTS[0], bool(weights))):
        if not is_there:
            raise SiTError(
                f"{folder} holds no model: it has no {name}", remedy="give the output folder of a finished run"
            )
    files = [folder / CONFIG, *_matching(folder, (PROCESSOR, *LOGS)), *weights, *_code(folder)]
    if is_finished:
        files += [*_matching(folder, CARD_AND_RESULTS), *_shown_images(folder)]
    return {file.relative_to(folder).as_posix(): file for file in files}


def find_checkpoint_files(folder: Path) -> dict[str, Path]:
    """The files that another machine needs to resume a run, of pretraining or of fine-tuning.

    Args:
        folder (`Path`): The output folder of the run.

    Returns:
        `dict[str, Path]`: Each file by its path in the repository: the newest checkpoint, below `last-checkpoint/`,
            and of fine-tuning the weights of the best one, below `best-checkpoint/`, if that is another. Empty if
            there is no complete checkpoint.
    """
    checkpoints = _numbered(folder, PRETRAINING_CHECKPOINT)
    if checkpoints:
        return _below(checkpoints[-1])
    for newest in reversed(_numbered(folder, FINETUNING_CHECKPOINT)):
        try:
            best = json.loads((newest / TRAINER_STATE).read_text(encoding="utf-8")).get("best_model_checkpoint")
        except (OSError, ValueError, AttributeError):  # not complete
            continue
        files = _below(newest)
        if best is not None and Path(best).name != newest.name:
            for weights in (Path(best) / TRAINING_WEIGHTS, folder / Path(best).name / TRAINING_WEIGHTS):
                if weights.is_file():  # where it was written, or in a folder that was moved as a whole
                    files[f"{BEST_CHECKPOINT}/{TRAINING_WEIGHTS}"] = weights
        return files
    return {}


def stage_files(files: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Keep files as they are now, while a run replaces and deletes them. Large ones are linked, where the disk has
    links.

    Args:
        files (mapping from `str` to `Path`): Each file by its path in the repository.
        folder (`Path`): An empty folder for them, on the same disk.

    Returns:
        `dict[str, Path]`: The files to read in their place.
    """
    staged = {}
    for name, file in files.items():
        staged[name] = folder / name
        staged[name].parent.mkdir(parents=True, exist_ok=True)
        if file.name == TRAINER_STATE:
            staged[name].write_text(_without_folders(file), encoding="utf-8")
            continue
        # Logs grow in place. Weights are written to a new file, so that a link keeps the old ones.
        if file.name in LOGS or file.stat().st_size <= MAX_COPIED_BYTES:
            shutil.copyfile(file, staged[name])
            continue
        try:
            os.link(file, staged[name])
        except OSError:
            shutil.copyfile(file, staged[name])
    return staged


def _without_folders(trainer_state: Path) -> str:
    """What `Trainer` knew, with the name alone of the best checkpoint: where it lies on this machine is nobody else's."""
    state = json.loads(trainer_state.read_text(encoding="utf-8"))
    if state.get("best_model_checkpoint") is not None:
        state["best_model_checkpoint"] = Path(state["best_model_checkpoint"]).name
    return json.dumps(state, indent=2) + "\n"


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]


def _numbered(folder: Path, pattern: str) -> list[Path]:
    """The folders whose names end in a number, by this number; `step-00000500-good` is the user's own."""
    paths = [path for path in folder.glob(pattern) if path.name.partition("-")[2].isdecimal()]
    return sorted(paths, key=lambda path: int(path.name.partition("-")[2]))


def _below(checkpoint: Path) -> dict[str, Path]:
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name not in NOT_OF_CHECKPOINTS)
    return {f"{LAST_CHECKPOINT}/{path.relative_to(checkpoint).as_posix()}": path for path in files}


def _code(folder: Path) -> list[Path]:
    """The modules that configuration and processor name, and those that these import; no other Python files."""
    modules: set[Path] = set()
    for settings in _matching(folder, (CONFIG, PROCESSOR)):
        try:
            auto_map = json.loads(settings.read_text(encoding="utf-8")).get("auto_map", {})
        except (ValueError, AttributeError) as problem:
            raise SiTError(f"{settings} cannot be read: {problem}") from problem
        for names in auto_map.values():
            for name in [names] if isinstance(names, str) else names:
                # `REPOSITORY--MODULE.CLASS` is code in another repository.
                if name is not None and "--" not in name:
                    modules.add(folder / f"{name.partition('.')[0]}.py")
    try:
        needed = {Path(path) for module in modules for path in get_relative_import_files(module)}
        missing = sorted(path.name for path in modules | needed if not path.is_file())
    except FileNotFoundError as problem:
        missing = [Path(problem.filename).name]
    if missing:
        raise SiTError(
            f"{folder} does not hold all of the code that loads its model: {missing[0]} is missing",
            remedy="export the model again",
        )
    return sorted(modules | needed)


def _shown_images(folder: Path) -> list[Path]:
    """The images in the folder that its card shows."""
    card = folder / CARD
    if not card.is_file():
        return []
    images = set()
    for found in SHOWN_IMAGES.finditer(card.read_text(encoding="utf-8", errors="replace")):
        image = Path(os.path.normpath(folder / unquote(found[1] or found[2] or found[3])))
        if image.suffix.lower() in IMAGE_ENDINGS and image.is_relative_to(folder) and image.is_file():
            images.add(image)
    return sorted(images)
