"""`modeling-sit convert FROM TO`: a checkpoint in another format."""

from collections.abc import Sequence

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.interop.convert import ConversionArguments, run_conversion

DESCRIPTION = """Write a checkpoint in another format, and check that it gives the same outputs there.

    modeling-sit convert FROM TO --format vit                      transformers' own ViT: a folder, no package, no code
    modeling-sit convert FROM TO --format timm                     a folder for timm.create_model("local-dir:TO")
    modeling-sit convert FROM TO.onnx --format onnx                a graph for ONNX Runtime, batches of any size
    modeling-sit convert FROM TO.pt2 --format torch_export         a graph that PyTorch loads alone
    modeling-sit convert FROM TO.safetensors --format torchvision  weights of torchvision's vit_b_16
    modeling-sit convert FROM TO.safetensors --format safetensors  SiT's weights in one file
    modeling-sit convert FROM TO --format sit                      a SiT repository

FROM is a folder that `modeling-sit pretrain` or `modeling-sit finetune` wrote, or the id of such a model on the Hub; or a
checkpoint of the authors' code (.pth), or a plain Vision Transformer of transformers or timm.

What was written is loaded again by the library that it is for, and its outputs are compared with the source's: on random
images (--seed), or on images of --dataset, one at a time and several. The largest difference is printed. If rounding does
not explain it, nothing of what was written is left, and the exit code is 1. What a format cannot hold is named.
"""


def main(argv: Sequence[str] | None = None) -> None:
    positionals = {"source": "FROM", "destination": "TO"}
    parser = RecipeArgumentParser(
        (ConversionArguments,), command="convert", positionals=positionals, description=DESCRIPTION
    )
    (arguments,) = parser.parse(argv)
    with one_line_errors(parser.flags):
        print(run_conversion(arguments).summary)
