"""`modeling-sit doctor`: a page on the machine and a dataset, for a report of trouble."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from modeling_sit.cli.errors import as_flags, one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.pretraining.doctor import DoctorArguments, run_doctor

DESCRIPTION = """Look at this machine and at a dataset, and say what a pretraining run would choose and take.

    modeling-sit doctor
    modeling-sit doctor --dataset IMAGES
    modeling-sit doctor --dataset IMAGES --json > doctor.json

The page has versions, devices, free memory and disk; numbers, sizes and modes of the images, unreadable ones, duplicates within and
across splits, labels, columns and splits; and the settings of a run with its time. Paste it into a report of trouble. A dataset
that cannot be used gives the page, too, with a line that says why. Nothing is written.
"""


@dataclass
class OutputArguments:
    """How the page is written."""

    json: bool = field(default=False, metadata={"help": "Whether to print the facts as JSON."})


def main(argv: Sequence[str] | None = None) -> None:
    parser = RecipeArgumentParser((DoctorArguments, OutputArguments), command="doctor", description=DESCRIPTION)
    arguments, output = parser.parse(argv)
    with one_line_errors(parser.flags):
        diagnosis = run_doctor(arguments)
    print(json.dumps(diagnosis.as_json(), indent=2) if output.json else as_flags(str(diagnosis), parser.flags))
