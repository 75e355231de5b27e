#!/usr/bin/env python
"""Check that a change of structure leaves every result the same, to the last bit.

    python scripts/benchmarks/witness.py --output before.json
    python scripts/benchmarks/witness.py --compare before.json

It runs the programs of the checkout that this file lies in, in small configurations, on the CPU. It prints a line
`NAME WEIGHTS LOSSES MONITORS` for each, with a digest in every column, or `-` if a program writes no such file.
Compare files of one machine and one set of packages only: another processor rounds differently.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, deserialize

# What the table calls flags that it has in several places. A flag that gets another name changes in one line.
FLAGS = {
    "batch": "per_device_train_batch_size",
    "cache": "image_cache",
    "cache_folder": "image_cache_dir",
    "data": "dataset",
    "log_every": "logging_steps",
    "model": "config_overrides",
    "monitor_every": "monitor_steps",
    "monitor_images": "monitor_images",
    "output": "output_dir",
    "resume": "resume_from_checkpoint",
    "save_every": "checkpointing_steps",
    "start": "model_name_or_path",
    "steps": "max_steps",
    "workers": "dataloader_num_workers",
}
# `{data}` is the folder of --data, `{own}` a folder of the configuration's own, `{digits}` the output of `digits`.
SIZES = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,decoder_hidden_size=32,projection_hidden_size=32"
COLOR = f"{SIZES},projection_size=16,drop_path_rate=0.1"
GRAY = f"{COLOR},num_channels=1"
QUIET = {"program": "pretrain", "workers": 0, "log_every": 1, "preview_steps": 0, "monitor_every": 0}
# A little more than one epoch each; of flowers, images are JPEG data.
DIGITS = {**QUIET, "recipe": "digits", "model": GRAY, "batch": 192, "steps": 8, "save_every": 4}
FLOWERS = {**QUIET, "recipe": "flowers", "data": "{data}", "model": COLOR, "batch": 128, "steps": 6, "save_every": 3}
STREAM = {**FLOWERS, "streaming": True, "shuffle_buffer_size": 100}
ON_DISK = {**FLOWERS, "cache": "disk", "cache_folder": "{own}"}
FINETUNE = {"program": "finetune", "recipe": "digits_finetune", "start": "{digits}", "max_steps": 6}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "digits": DIGITS,
    "no-corruption": DIGITS | {"corruption": "none"},
    "zeros-replace-aligned": DIGITS | {"corruption": "zeros+replace", "align_to_patches": True},
    "no-teacher": DIGITS | {"model": f"{GRAY},use_teacher=false"},
    "rotation": DIGITS | {"rotation_weight": 1},
    "contrast-alone": DIGITS | {"reconstruction_weight": 0},
    "reconstruction-alone": DIGITS | {"contrastive_weight": 0},
    "accumulation": DIGITS | {"batch": 96, "gradient_accumulation_steps": 2},
    "l2-all-pixels": DIGITS | {"model": f"{GRAY},reconstruction_norm=l2,reconstruction_region=all"},
    "export-teacher": DIGITS | {"export": "teacher"},  # the recipes say `student`
    "monitors": DIGITS | {"monitor_every": 4, "monitor_images": 64},
    "bf16": DIGITS | {"mixed_precision": "bf16"},
    "workers": DIGITS | {"workers": 2},
    "two-processes": DIGITS | {"batch": 96, "processes": 2},
    "interrupted": DIGITS | {"log_every": 3, "interrupted": True},
    "initial-weights": DIGITS | {"start": "{digits}", "model": ""},
    "cache-auto": DIGITS | {"cache": "auto", "steps": 24},  # from three epochs on it keeps images
    "cache-none": FLOWERS | {"cache": "none"},
    "cache-memory": FLOWERS | {"cache": "memory", "workers": 2},
    "cache-disk": ON_DISK,
    "cache-disk-interrupted": ON_DISK | {"interrupted": True},
    "cache-device": FLOWERS | {"cache": "device"},
    "flowers-monitors": FLOWERS | {"monitor_every": 3, "monitor_images": 64},
    "stream": STREAM,
    "stream-workers": STREAM | {"workers": 2},
    "stream-interrupted": STREAM | {"interrupted": True},
    "stream-two-processes": STREAM | {"batch": 64, "processes": 2},
    "finetune": FINETUNE | {"label_fraction": 0.2},
    "finetune-mixup-ema": FINETUNE | {"mixup_alpha": 0.8, "ema_decay": 0.9, "layer_decay": 0.75},
    "evaluate": {"program": "evaluate", "start": "{digits}", "data": "digits", "protocols": "knn,linear"},
}
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
CHECKOUT = Path(__file__).resolve().parents[2]
FLOWERS_FOLDER = CHECKOUT.parent / "shared" / "data" / "flowers12"
COLUMNS = ("weights", "losses", "monitors")
ABSENT = "-"


class ProgramFailed(Exception):
    """A program failed; the message is the end of what it said."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="File for the digests.")
    parser.add_argument("--compare", type=Path, metavar="FILE.json", help="Earlier digests; exits 1 if one differs.")
    parser.add_argument("--only", metavar="NAME,NAME", help="Configurations to run. Default: all.")
    parser.add_argument("--jobs", type=int, default=2, help="Programs to run at a time. Default: 2.")
    parser.add_argument("--data", type=Path, default=FLOWERS_FOLDER, help=f"JPEG images. Default: {FLOWERS_FOLDER}")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(CONFIGURATIONS)
    if unknown := [name for name in names if name not in CONFIGURATIONS]:
        parser.error(f"--only {unknown[0]}: no such configuration, only {', '.join(CONFIGURATIONS)}")
    earlier = json.loads(arguments.compare.read_text(encoding="utf-8")) if arguments.compare else None

    with tempfile.TemporaryDirectory(prefix="witness-") as folder:
        results = run_all(names, Path(folder), arguments.data.resolve(), arguments.jobs)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    failures = [f"{name}: FAILED" for name, result in results.items() if "failed" in result]
    if earlier is not None:
        asked_for = results if arguments.only else {**earlier, **results}
        failures += [line for name in asked_for for line in differences(name, earlier, results)]
        print("\n".join(failures) or f"no digest differs from {arguments.compare}")
    return 1 if failures else 0


def run_all(names: list[str], folder: Path, data: Path, jobs: int) -> dict[str, dict[str, str]]:
    """Run configurations, and those that they start from; print and give what came of each."""
    names = [name for name in CONFIGURATIONS if name in names or any(base_of(other) == name for other in names)]
    futures: dict[str, Future] = {}
    results: dict[str, dict[str, str]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for name in names:  # a base stands before what starts from it, so that nobody waits for ever
            futures[name] = pool.submit(run_one, name, folder, data, futures.get(base_of(name)))
        for name, future in futures.items():
            results[name] = result = future.result()
            words = {"failed": f"FAILED\n{result.get('failed')}", "skipped": f"skipped: {result.get('skipped')}"}
            print(name, *(words.get(kind, value) for kind, value in result.items()), flush=True)
    return results


def base_of(name: str) -> str | None:
    """The configuration whose output another one starts from."""
    return CONFIGURATIONS[name].get("start", "").strip("{}") or None


def run_one(name: str, folder: Path, data: Path, base: Future | None) -> dict[str, str]:
    settings, output = {"output": folder / name, **CONFIGURATIONS[name]}, folder / name
    if settings.get("data") == "{data}" and not data.exists():
        return {"skipped": f"there is no {data}"}
    if base is not None and "failed" in base.result():
        return {"failed": f"    {base_of(name)} failed"}
    interrupted = settings.pop("interrupted", False)
    command = command_for(settings, {"data": data, "own": folder / f"{name}-own", "digits": folder / "digits"})
    try:
        run(command, folder)
        if interrupted:
            run([*command, f"--{FLAGS['resume']}={forget_second_half(output)}"], folder)
        return digests(output, CONFIGURATIONS[name]["program"])
    except (ProgramFailed, OSError, ValueError, KeyError, SafetensorError) as problem:
        return {"failed": str(problem) or repr(problem)}


def command_for(settings: dict[str, Any], places: dict[str, Path]) -> list[str]:
    program, recipe, num_processes = (settings.pop(name, None) for name in ("program", "recipe", "processes"))
    command = [sys.executable, *([*LAUNCHER, str(num_processes)] if num_processes else [])]
    command.append(str(CHECKOUT / "scripts" / f"{program}.py"))
    if recipe:
        command.append(str(CHECKOUT / "scripts" / "recipes" / f"{recipe}.yaml"))
    return command + [f"--{FLAGS.get(name, name)}={value}".format(**places) for name, value in settings.items()]


def run(command: list[str], folder: Path) -> None:
    """Run a program that leaves nothing outside the folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    environment |= {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "TORCH_LOGS": "-torch.utils._pytree"}
    environment |= {"TMPDIR": str(folder), "HF_HOME": str(folder), "HF_DATASETS_CACHE": str(folder / "datasets")}
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if finished.returncode != 0:
        raise ProgramFailed("\n".join(f"    {line}" for line in finished.stderr.splitlines()[-8:]) or "    no word")


def forget_second_half(output: Path) -> Path:
    """Leave of a finished run what it had at its first checkpoint, but for its logs; gives the checkpoint."""
    first, *later = sorted((output / "checkpoints").iterdir())
    for path in later:
        shutil.rmtree(path)
    for name in ("model.safetensors", "README.md"):
        (output / name).unlink()
    return first


def digests(output: Path, program: str) -> dict[str, str]:
    """The digests of what a program wrote. Where it logs no losses, the figures that it measured stand for them."""
    weights = [*output.glob("*.safetensors")]
    for checkpoint in sorted(output.glob("checkpoints/*"))[-1:]:
        weights += checkpoint.glob("*.safetensors")
    metrics, monitors, figures = (output / name for name in ("metrics.jsonl", "monitors.jsonl", "eval_results.json"))
    losses = digest_of_lines(metrics, lambda key: key == "step" or key.endswith("loss"))
    if losses == ABSENT and figures.exists():
        losses = digest(repr(number) for number in numbers_in(json.loads(figures.read_text(encoding="utf-8"))))
    found = (digest(tensors_in(weights)), losses, digest_of_lines(monitors, lambda key: not is_time(key)))
    if losses == ABSENT or (found[0] == ABSENT and program != "evaluate"):
        raise ValueError(f"    it left no weights or no losses, only {', '.join(os.listdir(output))}")
    return dict(zip(COLUMNS, found, strict=True))


def tensors_in(paths: Iterable[Path]) -> Iterable[str]:
    """A line for each tensor; what else is in the files is left out."""
    for path in sorted(paths):
        for name, tensor in sorted(deserialize(path.read_bytes())):
            content = hashlib.sha256(tensor["data"]).hexdigest()
            yield f"{path.name} {name} {tensor['dtype']} {tensor['shape']} {content}"


def digest_of_lines(path: Path, is_chosen: Callable[[str], bool]) -> str:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return digest(repr([value for key, value in sorted(line.items()) if is_chosen(key)]) for line in lines)


def is_time(key: str) -> bool:
    return "second" in key or "time" in key


def numbers_in(results: Any, name: str = "") -> Iterable[tuple[str, float]]:
    """The numbers in `eval_results.json` by their names; its words are names and paths."""
    if isinstance(results, dict | list):
        for key, value in sorted(results.items()) if isinstance(results, dict) else enumerate(results):
            yield from numbers_in(value, f"{name}/{key}") if not is_time(str(key)) else ()
    elif isinstance(results, int | float):
        yield name, results


def digest(lines: Iterable[str]) -> str:
    """SHA-256 of lines, cut to 16 digits; `ABSENT` of none."""
    text = "\n".join(lines)
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ABSENT


def differences(name: str, earlier: dict[str, dict[str, str]], results: dict[str, dict[str, str]]) -> list[str]:
    """A line for each digest of a configuration that is not the same in both; one if only one side has digests."""
    before, now = ({column: side.get(name, {}).get(column) for column in COLUMNS} for side in (earlier, results))
    for word, here, there in (("before", before, now), ("now", now, before)):
        if here[COLUMNS[0]] is None and there[COLUMNS[0]] is not None:
            return [f"{name}: missing {word}"]
    return [f"{name}: other {column}" for column in COLUMNS if before[column] != now[column]]


if __name__ == "__main__":
    sys.exit(main())
