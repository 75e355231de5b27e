"""What was measured, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from modeling_sit.runtime.markdown import escaped, table
from throughput.measuring import OTHER, TOTAL

STAGES = (
    "decode and crop",
    "copy",
    "views",
    "corruption",
    "teacher forward",
    "student forward",
    "backward",
    "clip and optimizer",
    "teacher update",
    OTHER,
    TOTAL,
)


def describe_report(report: Mapping[str, Any]) -> str:
    """The whole report: machine, a table and the stages for each scenario, reading, sweeps."""
    machine = report["machine"]
    rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {name}" for name, rate in report["matrix_rates"].items())
    paragraphs = [
        f"`{report['command']}`",
        f"{machine['processor']}, {machine['usable_cores']} cores, {machine['threads']} threads, device "
        f"{machine['device']}; torch {machine['versions']['torch']}, transformers {machine['versions']['transformers']}; "
        f"matrix product {rates}; {report['images']}",
    ]
    for scenario in report["scenarios"]:
        paragraphs += [f"### {scenario['title']}, batch {scenario['batch_size']}", contender_table(scenario)]
        staged = [contender for contender in scenario["contenders"] if contender.get("stages")]
        if staged:
            paragraphs += ["Milliseconds of a step's stages, one after the other (share):", stage_table(staged)]
        if scenario.get("reading"):
            paragraphs += ["Reading and cropping alone, images/s:", reading_table(scenario["reading"])]
    for sweep in report["sweeps"]:
        if sweep.get("growth"):
            paragraphs.append(f"- {sweep['growth']}")
    if report["stopped"]:
        paragraphs.append(f"**{report['stopped']}**: not all was measured.")
    return "\n\n".join(paragraphs)


def contender_table(scenario: Mapping[str, Any]) -> str:
    """Medians of the runs (their range); what is not known is a dash."""
    header = ("contender", "views an image", "images/s (range)", "x plain", "x bare", "data wait")
    header += ("GFLOP an image", "of matrix rate", "memory, MB")
    return table(header, [_contender_row(contender) for contender in scenario["contenders"]])


def _contender_row(contender: Mapping[str, Any]) -> list[str]:
    name = escaped(contender["name"])
    if contender.get("error") or not contender.get("runs"):
        return [name, str(contender["views"]), contender.get("error") or "not measured", *["-"] * 6]
    speeds = [run["images"] / run["seconds"] for run in contender["runs"]]
    memory = contender["peak_memory_bytes"]
    return [
        name,
        str(contender["views"]),
        f"{contender['images_per_second']:,.4g} ({min(speeds):,.4g} to {max(speeds):,.4g})",
        _ratio(contender["times_plain"]),
        _ratio(contender["times_bare"]),
        f"{contender['data_wait']:.1%}",
        f"{contender['flops_per_image'] / 1e9:,.3g}",
        f"{contender['utilization']:.1%}",
        "-" if memory is None else f"{memory / 1e6:,.0f}",
    ]


def stage_table(contenders: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for contender in contenders:
        stages = contender["stages"]
        cells = [
            f"{1000 * stages[name]:,.3g} ({stages[name] / stages[TOTAL]:.1%})" if name in stages else "-"
            for name in STAGES
        ]
        rows.append([escaped(contender["name"]), *cells])
    return table(("contender", *STAGES), rows)


def reading_table(readings: Sequence[Mapping[str, Any]]) -> str:
    """Speeds of the first epoch, of later ones, and what was done before the first batch."""
    header = ("cache", "before the first batch, s", "first epoch", "second epoch")
    return table(
        header,
        [
            [
                escaped(reading["cache"]),
                f"{reading['prepare_seconds']:.2f}",
                *(f"{reading['images'] / seconds:,.4g}" for seconds in reading["epoch_seconds"]),
            ]
            for reading in readings
        ],
    )


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
