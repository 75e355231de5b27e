"""A checkpoint brings its code along, and loads where this package is not installed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoImageProcessor, pipeline

import modeling_sit
from modeling_sit import (
    SiTConfig,
    SiTForImageClassification,
    SiTForInstanceSegmentation,
    SiTForObjectDetection,
    SiTForPreTraining,
    SiTForSemanticSegmentation,
    SiTImageProcessor,
    SiTImageProcessorPil,
    SiTModel,
)

ROOT = Path(modeling_sit.__file__).parent
ROOT_FILES = sorted(path.name for path in ROOT.glob("*.py") if path.name != "__main__.py")
TRAVELLERS = sorted(set(ROOT_FILES) - {"__init__.py"})
ALLOWED = {"torch", "torchvision", "numpy", "PIL", "transformers"} | sys.stdlib_module_names
MODELS = {
    "AutoModel": SiTModel,
    "AutoModelForPreTraining": SiTForPreTraining,
    "AutoModelForImageClassification": SiTForImageClassification,
    "AutoModelForObjectDetection": SiTForObjectDetection,
    "AutoModelForInstanceSegmentation": SiTForInstanceSegmentation,
    "AutoModelForSemanticSegmentation": SiTForSemanticSegmentation,
}
# Two classes in one Auto class: each checkpoint says which is its own.
SEGMENTERS = {
    "AutoModelForInstanceSegmentation": "modeling_sit_detection.SiTForInstanceSegmentation",
    "AutoModelForSemanticSegmentation": "modeling_sit_segmentation.SiTForSemanticSegmentation",
}
TASKS = {
    "image-classification": ("AutoModelForImageClassification", {}),
    "image-feature-extraction": ("AutoModelForPreTraining", {"pool": True}),
}

# Runs where nothing called modeling_sit can be imported; what is loaded is saved again, to be loaded once more.
PROGRAM = """
import importlib.abc, json, sys

import numpy as np
import PIL.Image
import torch
import transformers
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModelForImageSegmentation, pipeline


class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeling_sit":
            raise ModuleNotFoundError("No module named 'modeling_sit'", name="modeling_sit")


sys.meta_path.insert(0, Blocker())
try:
    import modeling_sit
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package is there: nothing would be shown")

source, saved, results, *names = sys.argv[1:]
image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
report = {}
for turn, folder in (("first", source), ("again", saved)):
    modules = {}
    config = AutoConfig.from_pretrained(f"{folder}/AutoModelForPreTraining", trust_remote_code=True)
    modules["AutoConfig"] = type(config).__module__
    tensors = {}
    for name in names:
        model_class = getattr(transformers, name)
        model, info = model_class.from_pretrained(f"{folder}/{name}", trust_remote_code=True, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        modules[name] = type(model).__module__
        processor = AutoImageProcessor.from_pretrained(f"{folder}/{name}", trust_remote_code=True)
        modules["AutoImageProcessor"] = type(processor).__module__
        pil = AutoImageProcessor.from_pretrained(f"{folder}/{name}", trust_remote_code=True, backend="pil")
        modules["pil"] = f"{type(pil).__module__}.{type(pil).__name__}"
        pixel_values = processor([image, image], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            output = model.eval()(pixel_values, return_dict=True)
        tensors[name] = {key: value for key, value in output.items()}
        if turn == "first":
            model.save_pretrained(f"{saved}/{name}")
            processor.save_pretrained(f"{saved}/{name}")
    # Any checkpoint begins a model of any class, and brings that class along.
    detector = transformers.AutoModelForObjectDetection.from_pretrained(f"{folder}/AutoModel", trust_remote_code=True)
    modules["detector"] = type(detector).__module__
    # Its `from_pretrained` takes no folders.
    modules["AutoBackbone"] = type(AutoBackbone.from_config(config, trust_remote_code=True)).__module__
    for name in ("AutoModelForInstanceSegmentation", "AutoModelForSemanticSegmentation"):
        model = AutoModelForImageSegmentation.from_pretrained(f"{folder}/{name}", trust_remote_code=True)
        modules[f"segmentation by {name}"] = f"{type(model).__module__}.{type(model).__name__}"
    generator = torch.Generator().manual_seed(0)
    tensors["corrupted"] = dict(processor([image] * 3, do_corrupt=True, generator=generator, return_tensors="pt"))
    tensors["pil"] = dict(pil(image, return_tensors="pt"))
    pipelines = {
        "image-classification": ("AutoModelForImageClassification", {}),
        "image-feature-extraction": ("AutoModelForPreTraining", {"pool": True}),
    }
    for task, (name, options) in pipelines.items():
        run = pipeline(task, model=f"{folder}/{name}", trust_remote_code=True, device="cpu")
        modules[task] = type(run.model).__module__
        tensors[task] = run([image, image], **options)
    torch.save(tensors, f"{results}/{turn}.pt")
    report[turn] = modules
with open(f"{results}/report.json", "w") as file:
    json.dump(report, file)
"""

# Runs where neither modeling_sit nor torchvision can be imported.
PROGRAM_WITHOUT_TORCHVISION = """
import json, sys

sys.modules["modeling_sit"] = sys.modules["torchvision"] = None

import numpy as np
import PIL.Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline

saved, *folders = sys.argv[1:]
image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
report = []
for folder in folders:
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    classify = pipeline("image-classification", model=folder, trust_remote_code=True, device="cpu")
    report.append([f"{type(processor).__module__}.{type(processor).__name__}", classify(image)])
processor.save_pretrained(saved)
try:
    AutoModelForObjectDetection.from_pretrained(folders[0], trust_remote_code=True)
except ImportError as problem:
    print(json.dumps([report, str(problem)]))
"""


def small_config() -> SiTConfig:
    return SiTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        decoder_hidden_size=24,
        projection_hidden_size=20,
        projection_size=12,
        pyramid_size=8,
        box_head_size=12,
        mask_head_num_layers=1,
        detections_per_image=4,
        pooling="token_mean",
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder of one checkpoint for each Auto class, saved by the package."""
    folder = tmp_path_factory.mktemp("source")
    for name, model_class in MODELS.items():
        torch.manual_seed(0)
        model = model_class(small_config())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
        model.save_pretrained(folder / name)
        SiTImageProcessor(size={"height": 32, "width": 32}, corruption="zeros+replace").save_pretrained(folder / name)
    return folder


@pytest.fixture
def source_by_pillow(source, tmp_path):
    """A classifier's folder as it is saved where torchvision is missing."""
    folder = tmp_path / "by_pillow"
    SiTForImageClassification.from_pretrained(source / "AutoModelForImageClassification").save_pretrained(folder)
    SiTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def run_elsewhere(folder: Path, program: str, *arguments) -> str:
    """Run a program in a process of its own with empty caches, and give what it prints."""
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "home"),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.fixture(scope="module")
def elsewhere(source, tmp_path_factory):
    """What a process without the package made of these checkpoints: its report, and tensors by turn."""
    folder = tmp_path_factory.mktemp("elsewhere")
    saved, results = folder / "saved", folder / "results"
    results.mkdir()
    run_elsewhere(folder, PROGRAM, source, saved, results, *MODELS)
    report = json.loads((results / "report.json").read_text())
    tensors = {turn: torch.load(results / f"{turn}.pt", weights_only=True) for turn in ("first", "again")}
    return report, tensors


def image():
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


@pytest.mark.parametrize("turn", ["first", "again"])
def test_classes_come_from_the_checkpoint(elsewhere, turn):
    report, _ = elsewhere
    segmenters = {f"segmentation by {name}": ending for name, ending in SEGMENTERS.items()}
    others = {"AutoConfig", "AutoImageProcessor", "AutoBackbone", "pil", "detector"}
    assert set(report[turn]) == {*MODELS, *TASKS, *segmenters, *others}
    for name, ending in segmenters.items():
        assert report[turn][name].endswith(f".{ending}")
    for name, module in report[turn].items():
        assert module.startswith("transformers_modules."), name
    assert report[turn]["AutoImageProcessor"].endswith(".image_processing_sit")
    assert report[turn]["pil"].endswith(".image_processing_pil_sit.SiTImageProcessorPil")


@pytest.mark.parametrize("turn", ["first", "again"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_equal(elsewhere, source, name, turn):
    _, tensors = elsewhere
    model = MODELS[name].from_pretrained(source / name).eval()
    processor = SiTImageProcessor.from_pretrained(source / name)
    with torch.no_grad():
        expected = model(**processor([image(), image()], return_tensors="pt"))
    assert tensors[turn][name].keys() == expected.keys()
    assert len(expected.keys()) > 0
    for key, value in expected.items():
        assert (tensors[turn][name][key] - value).abs().max() < 1e-5, key


@pytest.mark.parametrize("turn", ["first", "again"])
def test_corruption_is_equal(elsewhere, turn):
    _, tensors = elsewhere
    processor = SiTImageProcessor(size={"height": 32, "width": 32}, corruption="zeros+replace")
    generator = torch.Generator().manual_seed(0)
    expected = processor([image()] * 3, do_corrupt=True, generator=generator, return_tensors="pt")
    for name, value in expected.items():
        assert torch.equal(tensors[turn]["corrupted"][name], value), name
    assert tensors[turn]["pil"]["pixel_values"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("turn", ["first", "again"])
@pytest.mark.parametrize("task", TASKS)
def test_pipelines_give_the_same(elsewhere, source, task, turn):
    _, tensors = elsewhere
    name, options = TASKS[task]
    for actual, expected in zip(
        tensors[turn][task],
        pipeline(task, model=str(source / name), device="cpu")([image()] * 2, **options),
        strict=True,
    ):
        if task == "image-classification":
            assert same_scores(actual, expected)
        else:
            assert np.allclose(actual, expected, atol=1e-5)


def same_scores(actual: list[dict], expected: list[dict]) -> bool:
    assert [entry["label"] for entry in actual] == [entry["label"] for entry in expected]
    return [entry["score"] for entry in actual] == pytest.approx([entry["score"] for entry in expected], abs=1e-5)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="the AutoImageProcessor of transformers 5.17 needs torchvision for every image processor",
)
def test_without_torchvision(source, source_by_pillow, tmp_path):
    folders = [source / "AutoModelForImageClassification", source_by_pillow]
    printed = run_elsewhere(tmp_path, PROGRAM_WITHOUT_TORCHVISION, tmp_path / "saved", *folders)
    report, refusal = json.loads(printed)
    assert "SiTForObjectDetection requires the Torchvision library" in refusal
    by_pillow = SiTImageProcessorPil.from_pretrained(folders[0])
    expected = pipeline("image-classification", model=str(folders[0]), image_processor=by_pillow, device="cpu")(
        image()
    )
    for processor_class, actual in report:
        assert processor_class.startswith("transformers_modules.")
        assert processor_class.endswith(".image_processing_pil_sit.SiTImageProcessorPil")
        assert same_scores(actual, expected)
    # What it saved names what it brought along, and loads where torchvision is.
    settings = json.loads((tmp_path / "saved/preprocessor_config.json").read_text())
    modules = {reference.partition(".")[0] for reference in settings["auto_map"]["AutoImageProcessor"]}
    assert modules == {"image_processing_pil_sit"}
    brought = {path.stem for path in (tmp_path / "saved").glob("*.py")}
    dense = {"dense_outputs", "dense_processing", "run_length_encoding"}
    assert brought == {"image_processing_pil_sit", "gmml", "image_modes"} | dense
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "saved")) is SiTImageProcessor


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_holds_its_code_flat(source, name):
    files = {path.name: path for path in (source / name).iterdir()}
    assert all(path.is_file() for path in files.values())
    for traveller in TRAVELLERS:
        assert files[traveller].read_text() == (ROOT / traveller).read_text()
    assert sorted(file for file in files if file.endswith(".py")) == TRAVELLERS


# The rule that makes it so.


def imports_of(source: str):
    """Each import statement of a file, wherever it stands: (level, module, names)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module, tuple(alias.name for alias in node.names)


def breaches(source: str, neighbours: set[str]) -> list[str]:
    found = []
    for level, module, names in imports_of(source):
        if level == 0 and module.partition(".")[0] not in ALLOWED:
            found.append(f"import of {module}")
        if level > 0 and (level > 1 or module is None or "." in module or module not in neighbours or "*" in names):
            found.append(f"import from {'.' * level}{module or ''}")
    return found


@pytest.mark.parametrize("name", ROOT_FILES)
def test_root_files_import_what_travels(name):
    neighbours = {Path(other).stem for other in TRAVELLERS}
    assert not breaches((ROOT / name).read_text(), neighbours)


@pytest.mark.parametrize(
    "line",
    [
        "import yaml",
        "import modeling_sit.gmml",
        "from modeling_sit.gmml import corrupt",
        "from . import gmml",
        "from .data.decoding import decode_image",
        "from ..gmml import corrupt",
        "from .gmml import *",
        "from .elsewhere import x",
        "def f():\n    import timm",
    ],
)
def test_breaches_of_the_rule_are_seen(line):
    assert breaches(line, {"gmml"})
    assert not breaches("import torch.nn as nn\nimport math\nfrom .gmml import corrupt", {"gmml"})
