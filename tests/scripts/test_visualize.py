"""`scripts/visualize.py`: every kind of figure from the command line, and what it says of mistakes."""

import json
import re

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib.figure import Figure
from transformers import ResNetConfig, ResNetModel

from modeling_sit import SiTForImageClassification, evaluate
from modeling_sit.data.sources import load_images
from modeling_sit.image_modes import PixelFormat
from modeling_sit.visualization import embeddings, embeddings_run, neighbours, run
from modeling_sit.visualization.arguments import ChosenImagesArguments
from modeling_sit.visualization.models import titles_of

COMMANDS = ("reconstructions", "embeddings", "attention", "neighbours")


@pytest.fixture
def model(save_tiny_sit, tmp_path):
    return save_tiny_sit(tmp_path / "model", seed=7)


@pytest.fixture
def flowers(save_images, tmp_path):
    """Two splits of two classes."""
    for number, folder in enumerate(("train/rose", "train/tulip", "val/rose", "val/tulip")):
        save_images(tmp_path / "flowers" / folder, 6, seed=number)
    return tmp_path / "flowers"


@pytest.fixture
def draw(run_program, model, flowers, tmp_path):
    """Draw a figure; gives it, or the exit code where there is none."""

    def draw(command: str, *flags, dataset=flowers, output="figure.png"):
        source = [] if dataset is None else ["--dataset", dataset]
        path = tmp_path / "figures" / output
        if command != "reconstructions":
            flags = ("--dots_per_inch", 40, *flags)  # fast
        code = run_program(
            "visualize", command, "--model_name_or_path", model, *source, "--output", path, "--device", "cpu", *flags
        )
        return code if code else path

    return draw


@pytest.fixture
def error(one_line_error, model, tmp_path):
    """The one line that a mistake gets; nothing is left behind."""

    def error(command: str, *flags, code: int = 1, model=model) -> str:
        flags = ["--model_name_or_path", model, "--output", tmp_path / "none.png", *flags]
        message = one_line_error("visualize", command, *flags, code=code)
        assert not list(tmp_path.glob("*none*"))
        return message

    return error


def pixels(path) -> np.ndarray:
    return np.asarray(PIL.Image.open(path).convert("RGB"))


@pytest.mark.parametrize("command", COMMANDS)
def test_figures_are_a_function_of_the_seed(draw, command):
    state = torch.get_rng_state()
    extra = {"embeddings": ["--method", "pca"], "neighbours": ["--num_neighbours", 2, "--num_queries", 2]}
    flags = extra.get(command, ["--num_images", 3])
    first, again = (pixels(draw(command, *flags, "--seed", 1, output=name)) for name in ("1.png", "2.png"))
    np.testing.assert_array_equal(first, again)
    assert first.std() > 10
    assert torch.equal(torch.get_rng_state(), state)
    if command != "embeddings":  # PCA has no seed, and all images are shown
        other = pixels(draw(command, *flags, "--seed", 2, output="3.png"))
        assert first.shape != other.shape or (first != other).any()


def test_recipe_and_pdf(draw, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("num_images: 2\n")
    assert draw("attention", output="figure.pdf").read_bytes().startswith(b"%PDF")
    path = tmp_path / "figures" / "figure.png"
    assert draw("attention", "--num_images", 2, "--dots_per_inch", 20) == path
    width = PIL.Image.open(path).width
    draw("attention", "--num_images", 2, "--dots_per_inch", 40)
    assert PIL.Image.open(path).width == pytest.approx(2 * width, abs=2)


def test_recipe_behind_the_command(run_program, model, flowers, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataset: {flowers}\nmodel_name_or_path: {model}\noutput: {tmp_path}/figure.png\n")
    assert run_program("visualize", "reconstructions", recipe, "--num_images", 3) == 0
    assert PIL.Image.open(tmp_path / "figure.png").width == 144 + 3 * (96 + 4)


def test_images_from_outside(draw, flowers, save_images, tmp_path):
    """Whatever their size and mode, each as it is."""
    PIL.Image.new("L", (100, 30), 200).save(tmp_path / "grey.png")
    files = [tmp_path / "grey.png", flowers / "val" / "rose" / "00.png"]
    sheet = pixels(draw("reconstructions", "--images", *files, "--corruption", "none", dataset=None))
    left, top = 144, 4 + 3 * (9 * 96 // 64) // 2  # below the files' names
    assert (sheet[4:top, left : left + 96] < 100).any()
    assert (sheet[top : top + 96, left : left + 96] == 200).all()
    with PIL.Image.open(files[1]) as image:
        expected = np.asarray(image.resize((16, 16), PIL.Image.Resampling.BICUBIC)).astype(int)
    shown = sheet[top : top + 96 : 6, left + 100 : left + 196 : 6].astype(int)
    assert np.abs(shown - expected).mean() < 3  # the processor resizes by torchvision
    assert draw("attention", "--images", *files, dataset=None).exists()
    assert draw("neighbors", "--images", *files).exists()  # the other spelling


def test_groups_of_images(draw, flowers, save_images, tmp_path):
    """Each is the sheet of its own images, and has a title."""
    pile = save_images(tmp_path / "pile", 4, seed=9)
    flags = ["--num_images", 3, "--image_size", 64]
    sheet = pixels(draw("reconstructions", "--splits", "train", "val", "--other_datasets", pile, *flags))
    parts = [
        pixels(draw("reconstructions", *flags, *named, dataset=dataset, output="part.png"))
        for dataset, named in ((flowers, ["--train_split", "train"]), (flowers, []), (pile, []))
    ]
    height = (len(sheet) - sum(map(len, parts)) - 2 * 16) // 3
    top = 0
    for part in parts:
        assert (sheet[top : top + height] < 100).any()
        np.testing.assert_array_equal(sheet[top + height :][: len(part)], part)
        top += height + len(part) + 16
    assert not np.array_equal(parts[0], parts[1])
    titled = pixels(draw("reconstructions", *flags, "--titles", "mine"))
    np.testing.assert_array_equal(titled[height:], parts[1])


def test_neighbours_of_an_image_from_outside(draw, flowers, monkeypatch):
    """A copy of a training image finds its original first, and no class is made up for it."""
    drawn = []
    monkeypatch.setattr(neighbours, "neighbours_figure", lambda rows: drawn.append(rows) or Figure(figsize=(1, 1)))
    original = flowers / "train" / "tulip" / "03.png"
    draw("neighbours", "--images", original, "--num_neighbours", 3)
    draw("neighbours", "--train_split", "val", "--validation_split", "val", "--num_queries", 12)
    ((query, nearest),) = drawn[0]
    assert query.labels is None and nearest[0].labels == ("tulip",)
    assert nearest[0].similarity == pytest.approx(1) and nearest[1].similarity < 0.9999
    np.testing.assert_array_equal(np.asarray(nearest[0].image), np.asarray(query.image))
    # Of one split, every image once, and none is its own neighbour.
    assert len({query.image.tobytes() for query, _ in drawn[1]}) == 12
    for query, nearest in drawn[1]:
        assert query.image.tobytes() not in {shown.image.tobytes() for shown in nearest}


class TestEmbeddings:
    @pytest.fixture
    def drawn(self, monkeypatch):
        """What the figure is made of."""
        calls, figure = [], embeddings.embedding_figure
        monkeypatch.setattr(embeddings, "embedding_figure", lambda *parts: calls.append(parts) or figure(*parts))
        return calls

    def test_before_and_after_with_a_page(self, draw, drawn, flowers, tmp_path, capsys):
        page = tmp_path / "pages" / "map.html"
        assert draw("embeddings", "--compare_with", "random", "--html", page, "--method", "pca").exists()
        ((maps, groups, legend_title, caption),) = drawn
        assert caption == "12 images of flowers, split val"
        assert [feature_map.title for feature_map in maps] == ["before training (random weights)", "after training"]
        assert (maps[0].points != maps[1].points).any()
        assert [group.name for group in groups] == ["rose", "tulip"] and legend_title == "class"
        assert re.search(r"nearest neighbor of the same class: \d+% \(by chance 45%\)", capsys.readouterr().out)
        points = json.loads(re.search(r'id="points">(.*?)</script>', page.read_text(), re.DOTALL)[1])
        assert len(points) == 12 and {point["group"] for point in points} == {"rose", "tulip"}
        assert all(point["image"].startswith("data:image/png;base64,") for point in points)
        assert {point["name"] for point in points} == {
            str(path.relative_to(flowers)) for path in (flowers / "val").rglob("*.png")
        }
        assert str(tmp_path) not in page.read_text()

    def test_several_checkpoints(self, draw, drawn, model, flowers, save_tiny_sit, tiny_config, tmp_path, capsys):
        """Of other sizes, and a classifier; accuracies as the commands measure them."""
        other = save_tiny_sit(tmp_path / "other", seed=1, num_hidden_layers=1, image_size=24)
        classifier = save_tiny_sit(tmp_path / "classifier")
        labels = {0: "tulip", 1: "rose"}
        SiTForImageClassification(tiny_config(id2label=labels)).save_pretrained(classifier)
        strange = save_tiny_sit(tmp_path / "strange", seed=2)
        SiTForImageClassification(tiny_config(id2label={0: "oak", 1: "elm"})).save_pretrained(strange)
        compared = ["random", other, classifier, strange]
        page = tmp_path / "map.html"
        assert draw("embeddings", "--compare_with", *compared, "--knn", "--method", "pca", "--html", page).exists()
        output = capsys.readouterr().out
        ((maps, _, _, caption),) = drawn
        assert [each.title for each in maps] == [
            titles_of(["random", "x"])[0],
            "other",
            "classifier",
            "strange",
            "model",
        ]
        assert {len(each.points) for each in maps} == {
            12
        } and "12 nearest of 12 labeled images of split train" in caption
        for each, folder in zip(maps, [None, *compared[1:], model], strict=True):
            untrained = {"from_scratch": True} if folder is None else {}
            found = evaluate(
                str(folder or model), str(flowers), knn_k=12, output_dir=str(tmp_path / "of"), **untrained
            )
            assert f"accuracy: kNN {found['knn']['accuracy']:.1%}" in each.result
            assert ("classifier" in each.result) == (each.title == "classifier")
            assert each.result in output and each.result in page.read_text()
        assert "strange: the classifier does not know the class rose" in output

    def test_titles(self, draw, drawn, save_tiny_sit, tmp_path):
        other = save_tiny_sit(tmp_path / "other", seed=1, num_hidden_layers=1)
        flags = ["--compare_with", other, "--titles", "(a) one", "(b) two", "--train_split", "train"]
        draw("embeddings", *flags, "--method", "pca")
        assert [feature_map.title for feature_map in drawn[0][0]] == ["(a) one", "(b) two"]

    def test_clusters(self, draw, drawn):
        draw("embeddings", "--color_by", "cluster", "--num_clusters", 3, "--method", "pca")
        _, groups, legend_title, _ = drawn[0]
        assert [group.name for group in groups] == ["1", "2", "3"] and "cluster" in legend_title

    def test_a_pile_without_labels_and_with_a_damaged_image(self, draw, drawn, save_images, tmp_path, caplog):
        pile = save_images(tmp_path / "pile", 8)
        (pile / "03.png").write_bytes(b"broken")
        page = tmp_path / "map.html"
        draw("embeddings", "--method", "pca", "--compare_with", "random", "--html", page, dataset=pile)
        maps, groups, *_ = drawn[0]
        assert [len(feature_map.points) for feature_map in maps] == [7, 7]
        assert sum(len(group.members) for group in groups) == 7 and len(groups) == 2
        assert caplog.text.count("03.png") == 1 and "03.png" not in page.read_text()

    def test_several_labels_an_image(self, draw, drawn, flowers, tmp_path, capsys):
        rows = load_images(str(flowers)).train.remove_columns("label")
        feature = datasets.List(datasets.ClassLabel(names=["red", "thorny"]))
        labels = [[0], [1, 0], [], None] * 3
        rows.add_column("label", labels, feature=feature).save_to_disk(tmp_path / "several")
        several = tmp_path / "several"
        page = tmp_path / "map.html"
        draw("embeddings", "--method", "pca", "--html", page, dataset=several)
        output = capsys.readouterr().out
        assert "`color_label`" in output and "nearest neighbor shares a class" in output
        assert drawn[0][2] == "cluster (k-means)"
        assert "red + thorny (" in page.read_text()
        draw("embeddings", "--method", "pca", "--color_label", "thorny", dataset=several)
        groups = {group.name: group.members.tolist() for group in drawn[1][1]}
        assert groups == {"thorny": [1, 5, 9], "without thorny": [0, 2, 4, 6, 8, 10], "no label": [3, 7, 11]}
        assert draw("embeddings", "--color_by", "label", dataset=several) == 1
        assert "name one with --color_label: red, thorny" in capsys.readouterr().err
        assert draw("embeddings", "--color_label", "blue", dataset=several) == 1
        assert "--color_label: no label 'blue', only red, thorny" in capsys.readouterr().err
        for command in ("neighbours", "attention", "reconstructions"):
            assert draw(command, dataset=tmp_path / "several").exists()

    def test_sample(self, draw, drawn):
        draw("embeddings", "--max_images", 5, "--method", "pca")
        assert len(drawn[0][0][0].points) == 5


def test_more_images_asked_than_there_are(draw, caplog):
    for command in ("attention", "reconstructions"):
        draw(command, "--num_images", 100)
    draw("neighbours", "--num_queries", 100, "--max_images", 50)
    draw("embeddings", "--max_images", 100, "--method", "pca")
    draw("embeddings", "--method", "pca")
    asked = ["num_images 100", "num_images 100", "max_images 50", "num_queries 100", "max_images 100"]
    assert caplog.messages == [f"{each}: there are only 12" for each in asked]


def test_images_without_labels_are_called_by_their_files(save_images, tmp_path):
    pile = ChosenImagesArguments(dataset=str(save_images(tmp_path / "pile", 3)))
    assert sorted(run.read_chosen(pile, 0, PixelFormat(3)).captions) == ["00", "01", "02"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_says_which_split_is_shown(run_program, capsys, command):
    assert run_program("visualize", command, "--help") == 0
    out = capsys.readouterr().out
    assert f"    modeling-sit visualize {command} --model_name_or_path M" in out
    assert "validation split" in out and "--validation_split name" in out


def test_help_lists_the_commands_and_each_has_its_own(run_program, capsys):
    assert run_program("visualize", "--help") == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)
    assert run_program("visualize", "embeddings", "--help") == 0
    out = capsys.readouterr().out
    assert "visualize.py embeddings" in out and "--compare_with" in out and "--corruption" not in out


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ([], ["no command", "reconstructions, embeddings, attention, neighbours"]),
        (["--dataset", "digits"], ["no command"]),
        (["neighbour"], ["unknown command 'neighbour'", "did you mean neighbours?"]),
        (["attention", "--model_name_or_path", "m"], ["--output"]),
        (
            ["attention", "--model_name_or_path", "m", "--dataset", "d", "--output", "f.png", "--html", "x.html"],
            ["--html"],
        ),
    ],
)
def test_command_line_mistakes(one_line_error, arguments, messages):
    error = one_line_error("visualize", *arguments, code=2)
    assert all(message in error for message in messages)


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("attention", ["--output", "figure.jpg"], "does not end in .png or .pdf"),
        ("attention", [], "--dataset: give either this or --images"),
        ("attention", ["--dataset", "digits", "--images", "a.png"], "--dataset: give either this or --images"),
        ("attention", ["--dataset", "digits", "--num_images", "0"], "--num_images: "),
        ("attention", ["--dataset", "digits", "--dots_per_inch", "5"], "--dots_per_inch: "),
        ("reconstructions", ["--dataset", "digits", "--image_size", "0"], "--image_size: "),
        ("embeddings", ["--dataset", "digits", "--html", "page.pdf"], "--html: page.pdf"),
        ("embeddings", ["--dataset", "digits", "--max_images", "3"], "--max_images: "),
        ("embeddings", ["--dataset", "digits", "--compare_with", *map(str, range(12))], "--compare_with: 13 models"),
        ("embeddings", ["--dataset", "digits", "--titles", "a", "b"], "--titles: 2 for 1"),
        ("embeddings", ["--dataset", "digits", "--compare_with", "random", "--titles", "a", "a"], "--titles: two"),
        ("reconstructions", ["--dataset", "d", "--splits", "a", "b", "--titles", "a"], "--titles: 1 for 2"),
        ("embeddings", ["--dataset", "digits", "--color_by", "label", "--num_clusters", "3"], "--num_clusters: "),
        ("embeddings", ["--dataset", "digits", "--per_device_eval_batch_size", "0"], "--per_device_eval_batch_size: "),
        ("neighbours", ["--dataset", "digits", "--num_queries", "0"], "--num_queries: "),
    ],
)
def test_flags_out_of_range(error, command, flags, message):
    assert message in error(command, *flags, code=2)


def test_mistakes_with_images(error, flowers, save_images, tmp_path):
    data = ["--dataset", flowers]
    assert "--train_split: only one split" in error(
        "attention", *data, "--train_split", "train", "--validation_split", "val"
    )
    assert "--layer: no layer 9" in error("attention", *data, "--layer", 9)
    assert "--layer: no layer 9" in error("embeddings", *data, "--layer", 9)
    assert "from 1 to 12" in error("neighbours", *data, "--num_neighbours", 13)
    assert "--num_clusters: 13" in error("embeddings", *data, "--color_by", "cluster", "--num_clusters", 13)
    assert "none.jpg: no such file" in error("reconstructions", "--images", tmp_path / "none.jpg")
    one = flowers / "val" / "rose" / "00.png"
    assert "--corruption noise" in error("reconstructions", "--images", one)
    for flags in (["--images", one], [*data, "--train_split", "train"]):
        assert error("reconstructions", *flags, "--splits", "val").startswith("--splits: ")
    assert error("reconstructions", *data, "--splits", "train", "none").startswith("--splits: ")
    nowhere = ["--other_datasets", tmp_path / "nowhere"]
    assert error("reconstructions", *data, *nowhere).startswith("--other_datasets: ")
    pile = save_images(tmp_path / "pile", 5)
    assert error("embeddings", "--dataset", pile, "--knn").startswith("--validation_split: ")
    assert "sub-folder of its own" in error("embeddings", "--dataset", pile, "--color_by", "label")
    for path in pile.iterdir():
        path.write_bytes(b"broken")
    for command in COMMANDS:
        assert "can be read" in error(command, "--dataset", pile)


def test_mistakes_with_models(error, flowers, model, save_tiny_sit, tiny_config, tmp_path):
    data = ["--dataset", flowers]
    for command in COMMANDS:
        assert "no such folder" in error(command, *data, model=tmp_path / "nowhere")
    for others in ([tmp_path / "nowhere"], ["random", "random"], ["random", f"{model}/"]):
        assert error("embeddings", *data, "--compare_with", *others).startswith("--compare_with: ")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in error("reconstructions", *data, model=tmp_path / "empty")
    plain = save_tiny_sit(tmp_path / "plain", reconstruction_weight=0.0)
    assert "reconstruction_weight=0" in error("reconstructions", *data, model=plain)
    SiTForImageClassification(tiny_config()).save_pretrained(model)
    assert "reconstructs nothing" in error("reconstructions", *data, model=model)
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(model)
    assert "resnet" in error("reconstructions", *data, model=model)
    assert "no attention" in error("attention", *data, model=model)


@pytest.mark.parametrize("flag", ["--output", "--html"])
def test_places_that_cannot_be_written_are_found_before_anything_is_computed(
    error, flowers, monkeypatch, tmp_path, flag
):
    monkeypatch.delattr(embeddings_run, "load_encoder")
    (tmp_path / "file").write_text("in the way")
    ending = {"--output": ".png", "--html": ".html"}[flag]
    (tmp_path / f"folder{ending}").mkdir()
    for path in (tmp_path / "file" / "figure", tmp_path / "folder"):
        message = error("embeddings", "--dataset", flowers, flag, f"{path}{ending}")
        assert f"{path}{ending} cannot be written" in message and "give another place" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "flowers", f"folder{ending}", "model"]
