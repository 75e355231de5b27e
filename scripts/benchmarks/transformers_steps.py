#!/usr/bin/env python
"""Is a step of MAE or SimMIM slower than the one of transformers' class for the same work?

    python scripts/benchmarks/transformers_steps.py --steps 15 --output FILE.json

`ViTMAEForPreTraining` and `ViTForMaskedImageModeling` get the sizes of the method's networks, decoder included, as many images,
masked patches and pixels, and AdamW with the same clipping. The two take their steps in turns, so that other work on the machine slows
both equally, and CPU time is measured, reading excluded. The ratio is the median of the ratios of neighboring steps.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from cpu_step import NUM_WARMUP_STEPS, take_step
from method_steps import add_step_flags, prepare_runs
from reporting import write_report
from transformers import PreTrainedModel, ViTConfig, ViTForMaskedImageModeling, ViTMAEConfig, ViTMAEForPreTraining

from modeling_sit import SiTConfig
from modeling_sit.pretraining.loop import Run
from modeling_sit.pretraining.method import Method
from modeling_sit.runtime.products import restore_linear_layers


def mae_of_transformers(method: Method) -> PreTrainedModel:
    decoder = sizes_of(method.student.head.config)
    return ViTMAEForPreTraining(
        ViTMAEConfig(
            **sizes_of(method.config),
            **{f"decoder_{name}": value for name, value in decoder.items()},
            **image_sizes(method),
            mask_ratio=method.arguments.mask_ratio,
            norm_pix_loss=method.arguments.normalize_targets,
        )
    )


def simmim_of_transformers(method: Method) -> PreTrainedModel:
    config = ViTConfig(**sizes_of(method.config), **image_sizes(method), encoder_stride=method.config.patch_size)
    return ViTForMaskedImageModeling(config)


def sizes_of(config: SiTConfig) -> dict[str, int]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return {name: getattr(config, name) for name in names}


def image_sizes(method: Method) -> dict[str, int]:
    return {name: getattr(method.config, name) for name in ("image_size", "patch_size", "num_channels")}


TWINS: dict[str, Callable[[Method], PreTrainedModel]] = {"mae": mae_of_transformers, "simmim": simmim_of_transformers}


def step_of_transformers(name: str, run: Run) -> Callable[[torch.Tensor], float]:
    """A function that trains transformers' class on clean views, and gives the CPU seconds."""
    model = TWINS[name](run.method).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

    def take(views: torch.Tensor) -> float:
        started = time.process_time()
        inputs = {}
        if name == "simmim":  # MAE of transformers draws its masks itself
            inputs["bool_masked_pos"] = run.method.draw_masks(len(views), views.device)["masked_patches"]
        model(views, **inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.flags.run.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - started

    return take


def measure(batch_size: int, side: int, steps: int, plain_products: bool = False) -> list[dict[str, Any]]:
    """For each method CPU seconds of every step, `ours` and `transformers`, and the ratio of their times."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name, run in prepare_runs(list(TWINS), batch_size, side, folder).items():
            if plain_products:
                restore_linear_layers(run.method)
            batches = run.data.batches(0, run.num_batches)
            theirs = step_of_transformers(name, run)
            views = torch.randn(batch_size, 3, *run.method.config.image_shape)
            seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
            for number in range(NUM_WARMUP_STEPS + steps):
                seconds["ours"].append(take_step(run, batches, number)[0])
                seconds["transformers"].append(theirs(views))
            batches.close()
            timed = {who: each[NUM_WARMUP_STEPS:] for who, each in seconds.items()}
            ratio = statistics.median(own / other for own, other in zip(*timed.values(), strict=True))
            results.append({"method": name, "seconds": timed, "ratio": ratio})
    return results


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| method | CPU ms a step | transformers' class | ratio |", "|---|---|---|---|"]
    for each in results:
        ours, theirs = (1000 * statistics.median(each["seconds"][who]) for who in ("ours", "transformers"))
        lines.append(f"| {each['method']} | {ours:.0f} | {theirs:.0f} | {each['ratio']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time a step of MAE and of SimMIM, and of transformers' classes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add_step_flags(parser, steps=15)
    parser.add_argument("--plain_products", action="store_true", help="PyTorch's own products of matrices, no oneDNN")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    results = measure(arguments.batch_size, arguments.image_size, arguments.steps, arguments.plain_products)
    print(table(results))
    write_report(arguments.output, batch_size=arguments.batch_size, results=results)


if __name__ == "__main__":
    main()
