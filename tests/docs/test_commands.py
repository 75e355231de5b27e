"""What README and docs say to type: each block runs as it stands, on small images and a tiny model, or says why not."""

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest

import modeling_sit
from modeling_sit.pretraining.methods import METHODS

ROOT = Path(__file__).parents[2]
# Pages of tasks and of the reference come last: what they say to type is mostly said before.
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md"), key=lambda page: (page.parent != ROOT / "docs", page)),
]
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>bash|python)\n(?P<text>.*?)```", re.DOTALL)

# Names that stand for the reader's own images.
PLACEHOLDERS = {
    "PATH/TO/IMAGES": "images",
    "LABELED_IMAGES": "images",
    "LABELED/IMAGES": "images",
    "IMAGES": "images",
    "USER/DATASET": "images.parquet",
}
# Flags that make the commands small. They follow the flags of the page; the last one of a name counts. In Python they take
# the place of the page's keyword arguments.
BACKBONE = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2"
MODEL = f"{BACKBONE},decoder_hidden_size=8,projection_hidden_size=8,projection_size=8"
BATCH = ["--per_device_train_batch_size", "4"]
SMALL = {
    "pretrain": [
        *(*BATCH, "--max_steps", "2", "--monitors", "none"),
        *("--image_size", "16", "--patch_size", "8", "--config_overrides", MODEL),
    ],
    "finetune": [*BATCH, "--num_train_epochs", "1", "--max_tuning_steps", "2", "--validation_fraction", "0.9"],
    "compare": [
        *("--label_fractions", "1", "--num_train_epochs", "1", "--seeds", "0", "--protocols", "none"),
        *("--raw_pixels", "knn", "--tune", "no"),
    ],
    "ablate": [
        *("--cells", "zeros", "--steps", "2", "--seeds", "0", "--protocols", "knn", "--label_fractions", "none"),
        *("--raw_pixels", "knn", "--profile", "smoke"),
    ],
    "doctor": ["--measure", "no"],
    "compare-methods": [
        *(
            *BATCH,
            "--methods",
            "simclr",
            "--budget",
            "steps",
            "--budget_value",
            "2",
            "--tune",
            "no",
            "--tune_finetuning",
            "no",
        ),
        *("--label_fractions", "1", "--max_steps", "1", "--seeds", "0", "--protocols", "none", "--raw_pixels", "knn"),
    ],
}
# These are no commands of the package. Tests of their own run them.
MAKE = ("make quickstart", "make install && source .venv/bin/activate")


@dataclass
class Block:
    """A fenced block of a page: its language, its text, and what the comment above it says, if there is one."""

    page: Path
    language: str
    text: str
    mark: str | None

    @property
    def commands(self) -> list[str]:
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    def __str__(self) -> str:
        return f"{self.page.stem}: {self.text.splitlines()[0][:60]}"


def blocks_of(page: Path) -> list[Block]:
    return [Block(page, found["language"], found["text"], found["mark"]) for found in BLOCK.finditer(page.read_text())]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder that the first test makes and the others copy."""
    return tmp_path_factory.mktemp("prepared") / "workspace"


@pytest.fixture
def workspace(prepared, tmp_path, monkeypatch, run_program, save_images):
    """A folder with labeled images, `outputs/mine` pretrained and `outputs/classifier` fine-tuned, to work in."""
    if not prepared.exists():
        for split, count in (("train", 24), ("test", 6)):
            for seed, label in enumerate(("daisy", "rose")):
                save_images(prepared / "images" / split / label, count, seed=seed)
        monkeypatch.chdir(prepared)
        files = sorted(Path("images/train").rglob("*.png"))
        rows = {"image": [str(file) for file in files], "label": [file.parent.name for file in files]}
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["daisy", "rose"])}
        )
        datasets.Dataset.from_dict(rows, features=features).to_parquet("images.parquet")
        start = "--dataset LABELED_IMAGES --output_dir"
        run(run_program, f"modeling-sit pretrain {start} outputs/mine")
        run(run_program, f"modeling-sit finetune --model_name_or_path outputs/mine {start} outputs/classifier")
    shutil.copytree(prepared, tmp_path / "workspace")
    monkeypatch.chdir(tmp_path / "workspace")
    return tmp_path / "workspace"


def name_and_flags(command: str) -> tuple[str, ...]:
    """The command of the package that a line starts, with its flags, however it is started."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command)]
    if words[0] == "modeling-sit":
        name, *flags = words[1:]
    elif "-m" in words:
        assert words[words.index("-m") + 1] == "modeling_sit", command
        name, *flags = words[words.index("-m") + 2 :]
    else:
        place = next(number for number, word in enumerate(words) if re.fullmatch(r"scripts/\S+\.py", word))
        name, flags = Path(words[place]).stem, words[place + 1 :]
    assert words[0] in ("modeling-sit", "python") or words[:2] == ["accelerate", "launch"], command
    return name, *flags


def run(run_program, command: str) -> None:
    name, *flags = name_and_flags(command)
    if "--help" not in flags:
        flags += SMALL.get(name, [])
    if "--output_dir" in flags:  # where a reader would have none yet
        shutil.rmtree(flags[flags.index("--output_dir") + 1], ignore_errors=True)
    assert run_program(name, *flags) == 0, command


def blocks_to_run(language: str) -> list[Block]:
    """Those without a mark, and without those that say what blocks before them have said."""
    chosen, seen = [], set()
    for block in BLOCKS:
        if block.mark is None and block.language == language:
            own = (
                {block.text}
                if language == "python"
                else {name_and_flags(each) for each in block.commands if each not in MAKE}
            )
            if not own <= seen:
                chosen.append(block)
            seen |= own
    return chosen


@pytest.mark.parametrize("block", blocks_to_run("bash"), ids=str)
def test_commands(block, workspace, run_program):
    for command in block.commands:
        if command not in MAKE:
            run(run_program, command)


def keywords_of(flags: list[str]) -> dict[str, list[str] | str]:
    """The flags as keyword arguments."""
    words = " ".join(flags).split("--")[1:]
    names_values = [(name, values) for name, *values in (word.split() for word in words)]
    return {name: values[0] if len(values) == 1 else values for name, values in names_values}


@pytest.fixture
def small_functions(monkeypatch):
    """Have the functions of the Python API run on small sizes, into folders that are new."""

    def small(function, flags):
        def call(*arguments, **keywords):
            for folder in (
                arguments[-1:]
                if function.__name__ in ("pretrain", "finetune", "compare", "compare_methods", "ablate")
                else ()
            ):
                shutil.rmtree(folder, ignore_errors=True)
            small = keywords_of(flags)
            if keywords.get("method", "sit") != "sit":  # without SiT's heads
                small["config_overrides"] = BACKBONE
            return function(*arguments, **{**keywords, **small})

        return call

    for command, flags in SMALL.items():
        name = command.replace("-", "_")
        monkeypatch.setattr(modeling_sit, name, small(getattr(modeling_sit, name), flags))


@pytest.fixture
def own_methods():
    """Forget the methods that a page registers."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.parametrize("block", blocks_to_run("python"), ids=str)
def test_python(block, workspace, small_functions, own_methods, forget_accelerators):
    text = block.text
    for placeholder, path in PLACEHOLDERS.items():
        text = text.replace(f'"{placeholder}"', f'"{path}"')
    exec(compile(text, str(block.page), "exec"), {})


def test_every_mark_gives_a_reason():
    marks = [block.mark for block in BLOCKS if block.mark is not None]
    assert marks and all(re.match(r"(not run by a test: |run by tests/)\S", mark) for mark in marks)
    for path in re.findall(r"run by (tests/[\w/]+(?:\.py)?)", "\n".join(marks)):
        assert (ROOT / path).exists()


def test_every_page_is_looked_at():
    assert {page.name for page in PAGES} >= {
        "README.md",
        "pretraining.md",
        "ablations.md",
        "transfer.md",
        "dense_tasks.md",
        "demo.md",
        "sharing.md",
        "other_formats.md",
        "scaling.md",
        "architecture.md",
    }
    for page in PAGES:
        fences = len(re.findall(r"^```(?:bash|python)$", page.read_text(), re.MULTILINE))
        assert len(blocks_of(page)) == fences
        assert fences or page.parent.name == "reference"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


# Each command and benchmark.
PROGRAMS = [
    *("pretrain", "finetune", "evaluate", "compare", "compare-methods", "ablate"),
    *("embed", "tile", "convert", "push", "doctor", "demo"),
    *(f"visualize {kind}" for kind in ("reconstructions", "embeddings", "attention", "neighbours")),
    *("visualize detections", "visualize segmentation"),
    *(
        f"benchmarks/{name}"
        for name in (
            *("augmentation", "corruption", "evaluation_memory", "gpu_session", "initialization"),
            *("pretraining_throughput", "scaling", "timed_training", "transformers_steps", "witness"),
        )
    ),
]
# Flags of accelerate, of the Hub's own command, of pip and of SLURM.
OTHERS = {
    "--config_file",
    "--num_processes",
    "--quiet",
    "--include",
    "--no-deps",
    "--only-binary",
    "--python-version",
    "--local-dir",
    "--requeue",
    "--signal",
    "--shm-size",
    "--sort",
}


def test_every_flag_that_a_page_names_exists(run_program, capsys):
    """In the text of a page too, outside its commands."""
    for program in PROGRAMS:
        assert run_program(*program.split(), "--help") == 0
    known = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", page.read_text()))
        assert named - known <= OTHERS, page.name
