"""`modeling-sit convert FROM TO`: a checkpoint in another format."""

from collections.abc import Sequence

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.interop.convert import ConversionArguments, run_conversion

DESCRIPTION = """Write a checkpoint in another format, and check that the outputs are the same.

    modeling-sit convert FROM TO --format vit                      transformers' own ViT: a folder that needs no other code
    modeling-sit convert FROM TO --format timm                     a folder for timm.create_model("local-dir:TO", pretrained=True)
    modeling-sit convert FROM TO.onnx --format onnx                a graph for ONNX Runtime, batches of any size
    modeling-sit convert FROM TO.pt2 --format torch_export         a graph that PyTorch loads without this package
    modeling-sit convert FROM TO.safetensors --format torchvision  weights of torchvision's vit_b_16
    modeling-sit convert FROM TO.safetensors --format safetensors  SiT's weights in one file
    modeling-sit convert FROM TO --format sit                      a SiT repository

FROM is the output folder of `modeling-sit pretrain` or `modeling-sit finetune`, the id of such a model on the Hub, a checkpoint of
the authors' code (.pth), or a plain Vision Transformer of transformers or timm.

The command loads the result with the library of the format. It compares the outputs with those of the source, on random images
(--seed) or on images of --dataset, for one image and for several. It prints the largest difference. If this is more than rounding
(--tolerance), it deletes the result and ends with exit code 1. It names everything that the format cannot store.
"""


def main(argv: Sequence[str] | None = None) -> None:
    positionals = {"source": "FROM", "destination": "TO"}
    parser = RecipeArgumentParser(
        (ConversionArguments,), command="convert", positionals=positionals, description=DESCRIPTION
    )
    (arguments,) = parser.parse(argv)
    with one_line_errors(parser.flags):
        print(run_conversion(arguments).summary)
