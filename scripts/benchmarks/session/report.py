"""The report of a session as Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

# End to end, of ViT-S/16 on two views of 224: images a second.
GOAL = 4000


def describe_session(report: dict[str, Any]) -> str:
    """Machine, parts, throughput, models, and the end of the log of each part that is not done."""
    parts = {part["name"]: part for part in report["parts"]}
    paragraphs = [
        f"`{report['command']}`",
        f"{describe_machine(report['machine'])}; {report['seconds']:.0f} s of {60 * report['minutes']:.0f}",
        parts_table(report["parts"]),
    ]
    throughput = parts.get("throughput", {}).get("results")
    if throughput:
        paragraphs += describe_throughput(throughput)
    models = {name: part["results"] for name, part in parts.items() if part["results"].get("images")}
    if models:
        paragraphs += ["Features after pretraining, accuracy in %:", models_table(models), stages_of_models(models)]
    for part in report["parts"]:
        if part["tail"]:
            paragraphs += [f"The end of the log of {part['name']}:", code_block(part["tail"])]
    return "\n\n".join(paragraphs) + "\n"


def describe_machine(machine: dict[str, Any]) -> str:
    if machine.get("error"):
        return f"machine unknown ({machine['error']})"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['device']}, {machine['cores']} CPU cores; {versions}"


def parts_table(parts: Iterable[dict[str, Any]]) -> str:
    rows = []
    for part in parts:
        status = part["status"] + (f": {part['reason']}" if part["reason"] else "")
        times = "-" if part["status"] == "left out" else f"{part['seconds']:.0f} of {part['limit']:.0f}"
        rows.append([part["name"], status, times, headline(part)])
    return table(["part", "status", "seconds", "result"], rows)


def headline(part: dict[str, Any]) -> str:
    """The result of a part in a few words."""
    results = part["results"]
    if "passed" in results:
        counts = [f"{results[name]} {name}" for name in ("passed", "failed", "skipped") if results[name]]
        return ", ".join(counts) or "no tests"
    if results.get("fastest"):
        fastest = results["fastest"]
        if results["profile"] != "gpu":
            return f"{fastest['images_per_second']:,.0f} images/s"
        reached = "reached" if fastest["images_per_second"] >= GOAL else "missed"
        return f"{fastest['images_per_second']:,.0f} images/s end to end: the goal of {GOAL:,} is {reached}"
    if results.get("images"):
        values = {"kNN": accuracy(results, "knn"), "linear": accuracy(results, "linear")}
        return ", ".join(f"{name} {value} %" for name, value in values.items() if value != "-") or "-"
    return "-"


def describe_throughput(results: dict[str, Any]) -> list[str]:
    """Speeds, and the stages of a step of our run from files, the costliest first."""
    rows = [
        [scenario, contender["name"], speed(contender), percent(contender.get("data_wait"))]
        for scenario, contenders in results["scenarios"].items()
        for contender in contenders
    ]
    if not rows:
        return []
    paragraphs = ["Throughput:", table(["scenario", "contender", "images/s", "waiting for data"], rows)]
    stages = results.get("stages")
    if stages:
        ordered = sorted(stages.items(), key=lambda item: -item[1])
        total = sum(stages.values())
        rows = [[name, f"{1000 * seconds:.3g}", percent(seconds / total)] for name, seconds in ordered]
        paragraphs += [f"Stages of a step of {results['staged']}, one after the other:"]
        paragraphs += [table(["stage", "milliseconds", "fraction"], rows)]
    return paragraphs


def models_table(models: dict[str, dict[str, Any]]) -> str:
    header = ["images", "trained on / measured on", "raw pixels, kNN", "SiT, kNN", "SiT, linear"]
    header += ["steps", "epochs", "images/s in training"]
    rows = []
    for name, results in models.items():
        images, training = results["images"], results.get("training") or {}
        measured = f"{images['num_validation']:,} {images['split'].replace('_', '-')}"
        rows.append(
            [
                f"{name} ({images['dataset']})" if images["dataset"] != name else name,
                f"{images['num_train']:,} / {measured}",
                *(accuracy(results, protocol) for protocol in ("raw_knn", "knn", "linear")),
                f"{training['steps']:,}" + (" (cut off)" if training["steps"] < training["planned_steps"] else "")
                if training
                else "-",
                f"{training['epochs']:.4g}" if training else "-",
                f"{training['images_per_second']:,.0f}" if training.get("images_per_second") else "-",
            ]
        )
    return table(header, rows)


def stages_of_models(models: dict[str, dict[str, Any]]) -> str:
    """Seconds of each stage of the timed training."""
    names = list(dict.fromkeys(stage for results in models.values() for stage in results["seconds"]))
    rows = [
        [name, *(f"{results['seconds'].get(stage, 0):.1f}" for stage in names)] for name, results in models.items()
    ]
    return table(["seconds", *names], rows)


def accuracy(results: dict[str, Any], protocol: str) -> str:
    measured = results.get(protocol) or {}
    value = measured.get("accuracy", measured.get("mean_average_precision"))
    return "-" if value is None else f"{100 * value:.1f}"


def speed(contender: dict[str, Any]) -> str:
    value = contender.get("images_per_second")
    return contender.get("error") or "not measured" if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table. What is in its cells may contain bars."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |" for line in lines
    )


def code_block(lines: Iterable[str]) -> str:
    text = "\n".join(lines).replace("```", "'''")
    return f"```\n{text}\n```"
