"""Parts that the cards of pretraining and fine-tuning share."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult

from modeling_sit.hub.card_file import Card, DamagedCard, read_card
from modeling_sit.hub.card_results import put_results
from modeling_sit.hub.provenance import Start
from modeling_sit.runtime.atomic_files import replace_file, write_errors
from modeling_sit.runtime.markdown import code_block
from modeling_sit.visualization.charts import curves_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_LICENSE = "apache-2.0"
# Figures that cards show.
LOSS_CURVE, EXAMPLES = "loss_curve.png", "examples.png"
# The section that shows how to load the model, and in it the name of the model.
USAGE, REPOSITORY = "usage", re.compile(r'^repository = ("[^"\n]*")', re.MULTILINE)
# The metadata that a run updates. Once the card is written, the rest belongs to its readers.
METADATA = ("library_name", "license", "pipeline_tag", "datasets", "base_model")


def write_card(
    output_dir: Path, rendered: str, earlier: Card | None, results: list[EvalResult], keep_results: bool
) -> Path:
    """Write a card that was rendered from its template, or put its sections and metadata into an earlier card.

    Args:
        output_dir (`Path`): The model's folder.
        rendered (`str`): The new card.
        earlier (`Card`, *optional*): The folder's card, as [`read_written_card`] gives it.
        results (`list[EvalResult]`): Results of the model.
        keep_results (`bool`): Whether the other results of the earlier card are those of these weights.

    Returns:
        `Path`: The card.

    Raises:
        [`SiTError`]: If it cannot be written.
    """
    new = Card.parse(rendered.rstrip() + "\n")
    card = new if earlier is None else earlier
    if earlier is not None:
        metadata, known = new.metadata, earlier.metadata
        for name in METADATA:
            if metadata.get(name) != known.get(name):
                card.set_metadata(name, metadata.get(name))
        tags = list(dict.fromkeys([*(known.get("tags") or []), *metadata["tags"]]))
        if tags != known.get("tags"):
            card.set_metadata("tags", tags)
        for name in new.sections:
            card.put_section(name, new.section(name))
    put_results(card, results, output_dir.resolve().name, keep_others=keep_results)
    return card.save(output_dir)


def name_repository(folder: Path, model_id: str) -> None:
    """Make the card of a folder show the model's id on the Hub where it loads the model.

    Only the folder's own name, or an earlier id, in the section on loading is replaced. A card by somebody else is
    left unchanged.

    Raises:
        [`SiTError`]: If it cannot be written.
    """
    try:
        card = read_card(folder)
        usage = card.section(USAGE) if USAGE in card.sections else ""
    except (FileNotFoundError, DamagedCard):
        return
    named = REPOSITORY.search(usage)
    if named is not None and named[1] != json.dumps(model_id):
        card.put_section(USAGE, usage.replace(named[1], json.dumps(model_id)))
        card.save(folder)


def license_of(asked: str | None, earlier: Card | None) -> str:
    """The license that was asked for, else that of the earlier card, else the package's own."""
    told = earlier.metadata.get("license") if earlier is not None else None
    return asked or (told if isinstance(told, str) else None) or DEFAULT_LICENSE


def describe_commands(starts: Sequence[Start]) -> str:
    """The commands of a run's starts, as code, with the step that each one resumed from."""
    lines = []
    for start in starts:
        if start.step:
            lines.append(f"# going on from step {start.step:,}:")
        lines.append(start.command)
    return code_block(lines)


def describe_hardware_of(starts: Sequence[Start]) -> str:
    """The hardware of a run's starts, each once, in order."""
    return ", then ".join(dict.fromkeys(start.hardware for start in starts))


def save_curves(output_dir: Path, lines: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str | None:
    """Draw `loss_curve.png` with [`curves_figure`]. Returns its name, or `None` if there is nothing to draw.

    Raises:
        [`SiTError`]: If it cannot be written.
    """
    return save_shown(output_dir, LOSS_CURVE, curves_figure(lines, titles))


def save_shown(output_dir: Path, name: str, figure: "Figure | None") -> str | None:
    """Write a figure that a card shows as a PNG in its folder. Returns its name, or `None` if there is no figure.

    Raises:
        [`SiTError`]: If it cannot be written.
    """
    if figure is None:
        return None
    path = output_dir / name
    with write_errors(path, "free some space there"), replace_file(path) as unfinished:
        figure.savefig(unfinished, dpi=110, format="png")
    return name
