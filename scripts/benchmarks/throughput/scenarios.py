"""What each profile measures: contenders that take turns under the same conditions."""

from dataclasses import dataclass, field, replace
from typing import Any

from throughput.arguments import SWEEPS, ThroughputArguments

SMALL_HEADS = "decoder_hidden_size=64,projection_hidden_size=128,projection_size=64"
# Milliseconds a step, so that what is read and augmented costs more than the network.
INPUT_DOMINATED = {
    "image_size": 64,
    "patch_size": 16,
    "config_overrides": f"hidden_size=32,num_hidden_layers=2,num_attention_heads=2,{SMALL_HEADS}",
}
SMOKE = {
    "image_size": 32,
    "patch_size": 16,
    "config_overrides": f"hidden_size=16,num_hidden_layers=1,num_attention_heads=2,{SMALL_HEADS}",
}
VIT_SMALL = {"model_size": "small", "image_size": 224}


@dataclass(frozen=True)
class Entry:
    """
    A contender of a scenario.

    Args:
        name (`str`): What tables call it.
        kind (`str`): One of `KINDS`.
        flags (`dict`): Of `modeling-sit pretrain`, beside the scenario's. Contenders with the same flags share their networks.
    """

    name: str
    kind: str
    flags: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenario:
    """
    Contenders under the same conditions.

    Args:
        name (`str`): What the flags call it.
        title (`str`): What stands above its table.
        flags (`dict`): Of `modeling-sit pretrain`.
        entries (`list[Entry]`): The contenders.
        runs, warmup_steps, steps (`int`): How often and how long each runs.
        reads (`bool`): Whether reading alone is measured too.
    """

    name: str
    title: str
    flags: dict[str, Any]
    entries: list[Entry]
    runs: int
    warmup_steps: int
    steps: int
    reads: bool = False


def create_scenarios(arguments: ThroughputArguments) -> list[Scenario]:
    """The scenarios of the profile that the benchmark's flags ask for."""
    contenders = _contenders(arguments)
    if arguments.profile == "smoke":
        flags = {**SMOKE, "per_device_train_batch_size": 4, "dataloader_num_workers": 0}
        scenarios = [Scenario("smoke", "A model of one layer, views of 32", flags, contenders, 2, 1, 2, reads=True)]
    elif arguments.profile == "cpu":
        tiny = {**INPUT_DOMINATED, "per_device_train_batch_size": 64, "dataloader_num_workers": 0}
        small = {**VIT_SMALL, "per_device_train_batch_size": 8, "dataloader_num_workers": 0}
        scenarios = [
            Scenario("input", "A tiny model, views of 64: reading dominates", tiny, contenders, 5, 1, 4, reads=True),
            Scenario("arithmetic", "ViT-S/16, views of 224: arithmetic dominates", small, contenders, 3, 1, 2),
        ]
    else:
        scenarios = _gpu_scenarios(contenders)
    return [_as_asked(scenario, arguments) for scenario in scenarios]


def _contenders(arguments: ThroughputArguments) -> list[Entry]:
    compiled = {"torch_compile": True} if arguments.torch_compile else {}
    kind = arguments.image_cache or ("device" if arguments.profile == "gpu" else "memory")
    cached = {**compiled, "image_cache": kind}
    ours = [
        Entry("ours from files, no cache", "files", {**compiled, "image_cache": "none"}),
        Entry(f"ours from files, cache in {kind}", "files", cached),
        Entry("ours, synthetic input", "synthetic", cached),
        Entry("bare arithmetic", "bare", cached),
    ]
    if arguments.profile == "gpu" and not arguments.torch_compile:
        ours += [
            Entry(f"{entry.name}, compiled", entry.kind, {**cached, "torch_compile": True})
            for entry in ours
            if entry.flags == cached
        ]
    theirs = [Entry("plain reference", "plain"), Entry("ViTMAEForPreTraining", "mae")]
    return [*ours, *theirs, Entry("ViTForMaskedImageModeling", "mim")]


def _gpu_scenarios(contenders: list[Entry]) -> list[Scenario]:
    def flags(batch_size: int, num_workers: int) -> dict[str, Any]:
        return {**VIT_SMALL, "per_device_train_batch_size": batch_size, "dataloader_num_workers": num_workers}

    ours = [entry for entry in contenders if entry.kind in ("files", "synthetic")]
    from_files = [entry for entry in ours if entry.kind == "files"]
    title = "ViT-S/16, views of 224, batch {}, {} workers"
    return [
        # A batch that the plain reference's float32 and written-out attention fit in.
        Scenario("contenders", title.format(256, 16), flags(256, 16), contenders, 3, 3, 20, reads=True),
        *(
            Scenario(f"batch{size}", title.format(size, 16), flags(size, 16), ours, 3, 3, max(10, 5120 // size))
            for size in (64, 128, 512)
        ),
        *(
            Scenario(f"workers{count}", title.format(256, count), flags(256, count), from_files[:1], 3, 2, 10)
            for count in (0, 1, 2, 4, 8)
        ),
    ]


def _as_asked(scenario: Scenario, arguments: ThroughputArguments) -> Scenario:
    """The scenario with what the benchmark's flags say otherwise."""
    flags = dict(scenario.flags)
    for name in ("per_device_train_batch_size", "dataloader_num_workers"):
        if getattr(arguments, name) is not None:
            flags[name] = getattr(arguments, name)
    lengths = {
        name: getattr(arguments, name)
        for name in ("runs", "warmup_steps", "steps")
        if getattr(arguments, name) is not None
    }
    kinds = arguments.contenders or None
    entries = [entry for entry in scenario.entries if kinds is None or entry.kind in kinds]
    return replace(scenario, flags=flags, entries=entries, **lengths)


@dataclass(frozen=True)
class Sweep:
    """
    How the cost grows with one size.

    Args:
        name (`str`): What the flags call it.
        title, x_label, y_label (`str`): What the panel says; the labels tell units.
        scenario ([`Scenario`]): One entry for each size.
        sizes (`list`): What is swept, as the flag has it; one for each entry.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    scenario: Scenario
    sizes: list[int | str]


PANELS = {
    "batch": ("Batch", "images in a batch", "seconds a step"),
    "image_size": ("Image size", "patches of a view", "seconds an image"),
    "workers": ("Workers", "worker processes", "images a second, from files"),
    "model_size": ("Model size", "GFLOP an image, counted", "seconds an image"),
}
SWEPT_FLAGS = {
    "batch": "per_device_train_batch_size",
    "image_size": "image_size",
    "workers": "dataloader_num_workers",
    "model_size": "model_size",
}
SIZES = {
    "smoke": {"batch": [2, 4], "image_size": [16, 32], "workers": [1, 2], "model_size": ["tiny", "small"]},
    "cpu": {
        "batch": [2, 4, 8, 16, 32],
        "image_size": [64, 96, 128, 192, 256, 384],
        "workers": [1, 2, 3, 4],
        "model_size": ["tiny", "small", "base"],
    },
    "gpu": {
        "batch": [8, 16, 32, 64, 128, 256, 512],
        "image_size": [96, 128, 160, 224, 320, 448],
        "workers": [1, 2, 4, 8, 12, 16],
        "model_size": ["tiny", "small", "base"],
    },
}


def create_sweeps(arguments: ThroughputArguments) -> list[Sweep]:
    """The sweeps that `--sweep` asks for."""
    asked = SWEEPS if "all" in arguments.sweep else [name for name in SWEEPS if name in arguments.sweep]
    return [_create_sweep(name, arguments) for name in asked]


def _create_sweep(name: str, arguments: ThroughputArguments) -> Sweep:
    kind = "files" if name == "workers" else "synthetic"
    # The first of the kind reads every image anew, where reading counts.
    flags = next(entry.flags for entry in _contenders(arguments) if entry.kind == kind)
    sizes = SIZES[arguments.profile][name]
    entries = [Entry(f"{name} {size}", kind, {**flags, SWEPT_FLAGS[name]: size}) for size in sizes]
    if name == "workers" and arguments.profile != "gpu":
        base = {**(SMOKE if arguments.profile == "smoke" else INPUT_DOMINATED), "per_device_train_batch_size": 16}
    elif arguments.profile == "gpu":
        batch_size = {"image_size": 64, "workers": 256}.get(name, 128)
        base = {**VIT_SMALL, "per_device_train_batch_size": batch_size}
    elif arguments.profile == "cpu":
        base = {"model_size": "tiny", "image_size": 96, "per_device_train_batch_size": 8}
    else:
        base = {**SMOKE, "per_device_train_batch_size": 4}
        if name == "model_size":
            base["config_overrides"] = f"num_hidden_layers=1,{SMALL_HEADS}"
    base = {"dataloader_num_workers": 0, **base}
    scenario = Scenario(name, PANELS[name][0], base, entries, runs=3, warmup_steps=1, steps=4)
    asked = replace(arguments, contenders=[])
    if name in ("batch", "workers"):  # what is swept is not fixed
        asked = replace(asked, **{SWEPT_FLAGS[name]: None})
    return Sweep(name, *PANELS[name], _as_asked(scenario, asked), sizes)
