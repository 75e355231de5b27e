"""The demo as a folder that is a Space of the Hugging Face Hub, and needs nothing else."""

import json
import os
import shutil
from collections.abc import Collection, Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import datasets
from packaging.markers import Marker
from packaging.requirements import Requirement

import modeling_sit
from modeling_sit.data.opening import content_of
from modeling_sit.data.own_files import check_outside_dataset
from modeling_sit.data.sources import load_images
from modeling_sit.demo.arguments import RANDOM, DemoArguments
from modeling_sit.demo.checkpoints import ShownCheckpoint, load_shown
from modeling_sit.demo.gallery import Gallery
from modeling_sit.hub.repository_files import LOGS, find_model_files
from modeling_sit.runtime.atomic_files import write_errors
from modeling_sit.runtime.errors import SiTError, argument_names
from modeling_sit.visualization.models import title_of

# A Space is a repository of moderate size, and its machine has two cores.
MAX_IMAGES_OF_A_SPACE = 200
# The release that the demo is tested with, and what the package takes.
GRADIO_VERSION, GRADIO = "6.31.0", "gradio>=6.0,<7"
PACKAGE, MODEL, COMPARED, IMAGES = "modeling_sit", "model", "compared", "images"
REMEDY = "give another folder"
# Arguments that the page has, too, where they are not the defaults.
KEPT = ("network", "num_attention_heads", "intensity_range", "seed", "max_upload_megabytes", "max_upload_pixels")
APP = '''"""The page of {title}. Written by modeling-sit demo."""

import os

from modeling_sit.demo.arguments import DemoArguments
from modeling_sit.demo.run import run_demo

run_demo(
    DemoArguments(
{arguments}
        host="0.0.0.0",
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
    )
)
'''
CARD = """---
title: {quoted_title}
sdk: gradio
sdk_version: {version}
app_file: app.py
pinned: false
---

# {title}

{description}

The page reconstructs corrupted images, shows attention, {with_images}and predicts, if the checkpoint has the head of a task.

| file | what it is |
|---|---|
| `app.py` | starts the page |
| `requirements.txt` | what it needs |
| `{package}/` | the package that reads the checkpoint |
{files}
"""


def write_space(arguments: DemoArguments) -> Path:
    """Write the folder: the page, its requirements, its card, the package, the checkpoint, and some images of the dataset.

    Args:
        arguments ([`DemoArguments`]): With `export_space`, a folder that is new or empty.

    Raises:
        [`SiTError`]: If the folder holds something or cannot be written, or a checkpoint or the dataset cannot be used.
    """
    folder = Path(os.path.expanduser(arguments.export_space))
    check_outside_dataset(folder, arguments.dataset, "export_space")
    with write_errors(folder, REMEDY):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SiTError(f"{folder} is there and not empty", argument="export_space", remedy=REMEDY)
    shown = [load_shown(arguments.model_name_or_path, arguments.network, arguments.num_attention_heads)]
    given = {"model_name_or_path": arguments.model_name_or_path}
    if arguments.compare_with is not None:
        given["compare_with"] = arguments.compare_with
        if arguments.compare_with != RANDOM:
            with argument_names(model_name_or_path="compare_with"):
                shown.append(load_shown(arguments.compare_with))
    lines = requirement_lines({extra for each in shown for extra in _extras_of(each)})
    files, gallery = [], None
    if arguments.dataset is not None:
        images = load_images(**arguments.for_loading)
        gallery = Gallery.of(images, min(arguments.max_images, MAX_IMAGES_OF_A_SPACE), arguments.seed)
    with write_errors(folder, REMEDY):
        folder.mkdir(parents=True, exist_ok=True)
        for name, place in (("model_name_or_path", MODEL), ("compare_with", COMPARED)):
            if given.get(name, RANDOM) != RANDOM:
                given[name] = _copy_checkpoint(given[name], folder, place)
                files.append(f"| `{given[name]}` | {'the checkpoint' if place == MODEL else 'the one beside it'} |")
        if gallery is not None:
            _write_images(gallery, folder / IMAGES)
            given["dataset"] = IMAGES
            files.append(f"| `{IMAGES}/` | {len(gallery):,} images of {Path(images.name).name} |")
        for name in KEPT:
            if getattr(arguments, name) != DemoArguments.__dataclass_fields__[name].default:
                given[name] = getattr(arguments, name)
        _copy_package(folder / PACKAGE)
        title = title_of(arguments.model_name_or_path)
        keywords = "\n".join(f"        {name}={value!r}," for name, value in given.items())
        (folder / "app.py").write_text(APP.format(title=title, arguments=keywords), encoding="utf-8")
        (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        card = CARD.format(
            title=title,
            quoted_title=json.dumps(title, ensure_ascii=False),
            version=GRADIO_VERSION,
            description=f"What {shown[0].describe()} makes of images.",
            with_images="finds the nearest images, draws a map of them, " if arguments.dataset is not None else "",
            package=PACKAGE,
            files="\n".join(files),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def requirement_lines(extras: Collection[str] = ()) -> list[str]:
    """What a Space installs: the requirements of the package for training and measuring, and gradio.

    Args:
        extras (collection of `str`, *optional*): Extras of the package that are needed, too.

    Raises:
        [`SiTError`]: If the package is not installed, so that nobody knows them.
    """
    try:
        found = [Requirement(line) for line in requires("modeling-sit") or ()]
    except PackageNotFoundError as problem:
        raise SiTError(
            "the package is not installed, so that its requirements are not known", remedy="pip install -e . first"
        ) from problem
    kept = [each for each in found if each.marker is None or _is_of(each.marker, {"train", *extras})]
    lines = {f"{each.name}{each.specifier}" for each in kept if each.name != "gradio"}
    return [*sorted(lines), GRADIO]


def _is_of(marker: Marker, extras: Collection[str]) -> bool:
    return any(marker.evaluate({"extra": extra}) for extra in extras)


def _extras_of(shown: ShownCheckpoint) -> Iterator[str]:
    """Extras of the package that a checkpoint and its images need."""
    networks = (shown.model, getattr(shown.predicting, "model", None))
    modules = (module for network in networks if network is not None for module in network.modules())
    if any(type(module).__module__.startswith("timm.") for module in modules):
        yield "timm"
    if not shown.pixel_format.has_mode:
        yield "scientific"


def _copy_checkpoint(name: str, folder: Path, place: str) -> str:
    """Copy a checkpoint, and give its path in the Space. One of the Hub stays there."""
    source = Path(os.path.expanduser(name))
    if source.is_file():
        copy = folder / f"{place}{source.suffix}"
        shutil.copyfile(source, copy)
        return copy.name
    if not source.is_dir():
        return name
    for path, file in find_model_files(source, is_finished=False).items():
        if path not in LOGS:
            (folder / place / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / place / path)
    return place


def _copy_package(folder: Path) -> None:
    source = Path(modeling_sit.__file__).parent
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


def _write_images(gallery: Gallery, folder: Path) -> None:
    """Write the images as they are, encoded, with their labels, and without the paths that they had."""
    features = datasets.Features({"image": datasets.Image(decode=False)})
    if "label" in gallery.split.column_names:
        features["label"] = gallery.split.features["label"]
    rows = datasets.Dataset.from_list(list(_rows(gallery, list(features))), features=features)
    folder.mkdir()
    rows.to_parquet(folder / "train-00000-of-00001.parquet")


def _rows(gallery: Gallery, columns: list[str]) -> Iterator[dict]:
    for row in gallery.split:
        image = row["image"]
        content = content_of(image) if image is not None else None
        if content is None:
            continue
        values = {"image": {"bytes": content, "path": os.path.basename(image["path"] or "") or None}}
        yield {**values, **({"label": row["label"]} if "label" in columns else {})}
