"""`modeling-sit embed`: the features of all images of a dataset, in parquet files."""

import os
from collections.abc import Sequence

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.evaluation.embed import EmbeddedSplit, EmbeddingArguments, run_embedding
from modeling_sit.evaluation.feature_arguments import FeatureArguments
from modeling_sit.runtime.words import counted

DESCRIPTION = """Write the features of all images of the training and the validation split to parquet files.

    modeling-sit embed --model_name_or_path M --dataset D --output_dir O
    accelerate launch -m modeling_sit embed ...        the same with several processes

The files are `O/data/train-00000-of-00003.parquet` and so on. They have one row for each image that can be read, with the
columns `row` (its number in the split), `path` (its file), `vector` (its features, float32) and, if there are labels, `label`.

Search the vectors with faiss (pip install faiss-cpu). With --normalize, inner products are cosines:

    vectors = datasets.load_dataset("parquet", data_dir="O", split="train").with_format("numpy")
    index = faiss.IndexFlatIP(vectors["vector"][:].shape[1])
    index.add(vectors["vector"][:])
    scores, rows = index.search(query[None], 6)               # query: float32, (width,)

or use faiss in `datasets`, which returns the rows with all columns:

    vectors.add_faiss_index("vector", metric_type=faiss.METRIC_INNER_PRODUCT)
    scores, nearest = vectors.get_nearest_examples("vector", query, k=6)
    nearest["path"], nearest["row"]

The command reads the images shard by shard, and writes each file only when it is complete. It keeps files that exist already. So
the same command continues an interrupted one, and gives the same files. To add another split, run the command again with
--validation_split NAME.
"""


def main(argv: Sequence[str] | None = None) -> None:
    classes = (EmbeddingArguments, FeatureArguments, DatasetArguments)
    parser = RecipeArgumentParser(classes, command="embed", description=DESCRIPTION)
    arguments = parser.parse(argv)
    with one_line_errors(parser.flags):
        splits = run_embedding(*arguments)
        if splits is not None:
            report(arguments[0].output_dir, splits)


def report(output_dir: str, splits: dict[str, EmbeddedSplit]) -> None:
    """Say what there is now, and how to load it."""
    num_reused = sum(split.num_reused for split in splits.values())
    if num_reused:
        print(
            f"{num_reused} of {counted(sum(len(split.files) for split in splits.values()), 'file')} {'was' if num_reused == 1 else 'were'} there already"
        )
    for name, split in splits.items():
        skipped = f", {counted(split.num_skipped, 'image')} skipped" if split.num_skipped else ""
        vectors, files = counted(split.num_vectors, "vector"), counted(len(split.files), "file")
        print(f"{name}: {vectors} of {split.width} numbers in {files}{skipped}")
    print(f'written to {output_dir}; load_dataset("parquet", data_dir="{os.path.abspath(output_dir)}") reads them')
    print("modeling-sit embed --help shows how to search them with faiss")
