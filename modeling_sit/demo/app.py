"""The page: controls, and what they call. Needs gradio."""

import functools
import html
import importlib.util
import traceback
from collections.abc import Callable
from typing import Any

import gradio as gr

from modeling_sit.demo.answers import SMALLEST_BLOCK
from modeling_sit.demo.arguments import MEGABYTE
from modeling_sit.demo.demonstration import Demonstration
from modeling_sit.demo.page import STYLE
from modeling_sit.gmml import CORRUPTION_KINDS, MAX_CORRUPTION_RATIO
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.embeddings import METHODS

TITLE = "What the model sees"
# One answer at a time: the model is one. So many wait, the next one is told to come back.
ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "model"}
MAX_WAITING = 32
# Files of users are deleted after an hour.
DELETE_CACHE = (600, 3600)
BRUSH = "#e69f00"
MAX_LISTED_HEADS = 32
NUM_NEIGHBOURS, MAX_NEIGHBOURS = 8, 24


def create_app(demonstration: Demonstration) -> gr.Blocks:
    """The page of a [`Demonstration`]. Nothing is sent anywhere."""
    gallery = demonstration.gallery
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=DELETE_CACHE) as app:
        # In HTML, for in Markdown a name could have a meaning.
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in demonstration.describe())
        gr.HTML(f"<h1>{TITLE}</h1>{lines}")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                file = gr.File(label="An image of your own", height=170, elem_id="file")
                number = gr.Slider(
                    *(0, max(1, len(gallery or ()) - 1)),
                    value=0,
                    step=1,
                    label="or an image of the dataset, by its number",
                    visible=gallery is not None,
                    elem_id="number",
                )
            with gr.Column(scale=2, min_width=260):
                looked = gr.HTML(label="The image", elem_id="looked")
        chosen = [file, number]
        with gr.Tabs():
            with gr.Tab("Reconstruct", id="reconstruct"):
                canvas = _reconstruct_tab(demonstration, chosen)
            with gr.Tab("Attention", id="attention"):
                _attention_tab(demonstration, chosen)
            with gr.Tab("Neighbors", id="neighbors"):
                _neighbours_tab(demonstration, chosen)
            with gr.Tab("Map", id="map"):
                _map_tab(demonstration)
            with gr.Tab("Predict", id="predict"):
                _predict_tab(demonstration, chosen)
            with gr.Tab("Compare", id="compare"):
                _compare_tab(demonstration, chosen)
        # Without a file, the image of the dataset is back.
        others = [app.load, file.clear] if gallery is not None else []
        outputs = [looked] if canvas is None else [looked, canvas]

        def look(*values: Any) -> Any:
            shown, image = demonstration.look(*values)
            return shown if canvas is None else (shown, image)

        events = [*others, file.upload, number.change]
        # Of the numbers that a slider passes, the last one counts.
        gr.on(events, _told(look), chosen, outputs, api_name="look", trigger_mode="always_last", **ONE_AT_A_TIME)
    app.queue(max_size=MAX_WAITING)
    return app


def launch_settings(demonstration: Demonstration) -> dict[str, Any]:
    """How the page is served: here alone, with bounds on what is uploaded, and without files of other servers."""
    arguments = demonstration.arguments
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {
        "server_name": arguments.host,
        "server_port": arguments.port,
        "share": False,
        "max_file_size": int(arguments.max_upload_megabytes * MEGABYTE),
        "allowed_paths": [],
        "show_error": True,
        "ssr_mode": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "footer_links": [],
        "theme": gr.themes.Default(**fonts),
        "css": STYLE,
        "quiet": True,
    }


def _told(answer: Callable) -> Callable:
    """The function with its errors as messages of the page."""

    @functools.wraps(answer)
    def told(*values: Any) -> Any:
        try:
            return answer(*values)
        except SiTError as error:
            # The page would take the text for HTML, and a file may be called like a script.
            raise gr.Error(html.escape(str(error)), print_exception=False) from error
        except Exception as error:
            traceback.print_exc()
            text = f"this was not foreseen, please report it: {type(error).__name__}: {error}"
            raise gr.Error(html.escape(text), print_exception=False) from error

    return told


def _answer(button: gr.Button, name: str, answer: Callable, inputs: list, output: Any) -> None:
    button.click(_told(answer), inputs, output, api_name=name, **ONE_AT_A_TIME)


def _reason(text: str) -> None:
    """Why a tab is empty."""
    gr.HTML(f"<p>{html.escape(text)}</p>")


def _says_why(demonstration: Demonstration, *abilities: str) -> bool:
    """Whether the checkpoint cannot do one of these, so that its tab says why and is empty."""
    missing = demonstration.checkpoint.missing
    lacking = next((ability for ability in abilities if ability in missing), None)
    if lacking is not None:
        _reason(missing[lacking])
    return lacking is not None


def _corruption_controls(gallery_is_there: bool) -> tuple[gr.Radio, gr.Slider, gr.Slider]:
    kinds = [kind for kind in CORRUPTION_KINDS if kind != "replace" or gallery_is_there]
    kind = gr.Radio(kinds, value=kinds[0], label="What fills the corrupted pixels")
    ratio = gr.Slider(0, MAX_CORRUPTION_RATIO, value=0.5, step=0.05, label="Fraction of the pixels", min_width=220)
    seed = gr.Slider(0, 100, value=0, step=1, label="Seed", min_width=220)
    return kind, ratio, seed


def _reconstruct_tab(demonstration: Demonstration, chosen: list) -> gr.ImageEditor | None:
    if _says_why(demonstration, "reconstruct"):
        return None
    with gr.Row():
        kind, ratio, seed = _corruption_controls(demonstration.gallery is not None)
        block_size = gr.Slider(
            *(SMALLEST_BLOCK, 1),
            value=0.25,
            step=0.05,
            label="Largest side of a block (1: the image's)",
            min_width=220,
        )
    button = gr.Button("Reconstruct", variant="primary")
    shown = gr.HTML(label="Reconstruction", elem_id="reconstructed")
    _answer(button, "reconstruct", demonstration.reconstruct, [*chosen, kind, ratio, block_size, seed], shown)
    gr.HTML("<p>Or paint the pixels to corrupt on the image as the model sees it:</p>")
    canvas = gr.ImageEditor(
        type="numpy",
        label="Paint what to corrupt",
        sources=(),
        transforms=(),
        layers=False,
        buttons=[],
        brush=gr.Brush(colors=[BRUSH], color_mode="fixed", default_size=32),
        format="png",
        elem_id="canvas",
    )
    painted = gr.Button("Reconstruct what is painted")
    _answer(painted, "reconstruct_painted", demonstration.reconstruct_painted, [*chosen, canvas, kind, seed], shown)
    return canvas


def _attention_tab(demonstration: Demonstration, chosen: list) -> None:
    if _says_why(demonstration, "encode", "attend"):
        return
    checkpoint = demonstration.checkpoint
    with gr.Row():
        layer = gr.Slider(1, max(2, checkpoint.num_layers), value=checkpoint.num_layers, step=1, label="Layer")
        heads = gr.CheckboxGroup(
            [(f"head {head}", head) for head in range(1, min(checkpoint.num_heads, MAX_LISTED_HEADS) + 1)],
            label="Heads (none: all)",
        )
    button = gr.Button("Show attention", variant="primary")
    shown = gr.HTML(label="Attention", elem_id="attention-shown")
    gr.HTML("<p>From dark blue, no attention of the first token, over gray, as much as even, to bright yellow.</p>")
    _answer(button, "attend", demonstration.attend, [*chosen, layer, heads], shown)


def _neighbours_tab(demonstration: Demonstration, chosen: list) -> None:
    if demonstration.gallery is None:
        _reason("Neighbors are sought among the images of a dataset. Start the demo with one.")
        return
    if _says_why(demonstration, "encode"):
        return
    most = min(MAX_NEIGHBOURS, max(2, len(demonstration.gallery) - 1))
    count = gr.Slider(1, most, value=min(NUM_NEIGHBOURS, most), step=1, label="How many")
    button = gr.Button("Find neighbors", variant="primary")
    shown = gr.HTML(label="Neighbors", elem_id="neighbors-shown")
    gr.HTML("<p>The first search computes the features of the dataset; the others reuse them.</p>")
    _answer(button, "neighbours", demonstration.neighbours, [*chosen, count], shown)


def _map_tab(demonstration: Demonstration) -> None:
    if demonstration.gallery is None:
        _reason("The map is of the images of a dataset. Start the demo with one.")
        return
    if _says_why(demonstration, "encode"):
        return
    methods = [method for method in METHODS if method != "umap" or importlib.util.find_spec("umap") is not None]
    method = gr.Radio(methods, value=METHODS[0], label="How features become two numbers")
    button = gr.Button("Draw the map", variant="primary")
    shown = gr.HTML(label="Map", elem_id="map-shown")
    _answer(button, "map", demonstration.map, [method], shown)


def _predict_tab(demonstration: Demonstration, chosen: list) -> None:
    if _says_why(demonstration, "predict"):
        return
    task = demonstration.checkpoint.task
    inputs = list(chosen)
    if task == "detection":
        inputs.append(gr.Slider(0, 1, value=0.5, step=0.05, label="Lowest score of what is drawn"))
    elif task == "segmentation":
        inputs.append(gr.State(0.5))
    button = gr.Button("Predict", variant="primary")
    if task == "classification":
        shown = gr.Label(num_top_classes=5, label="Classes", elem_id="predicted")
        _answer(button, "classify", demonstration.classify, inputs, shown)
    else:
        shown = gr.HTML(label="Prediction", elem_id="predicted")
        _answer(button, "find", demonstration.find, inputs, shown)


def _compare_tab(demonstration: Demonstration, chosen: list) -> None:
    if demonstration.compared is None:
        _reason("A second checkpoint stands here beside the first. Start the demo with one to compare with.")
        return
    with gr.Row():
        controls = _corruption_controls(demonstration.gallery is not None)
    button = gr.Button("Compare", variant="primary")
    shown = gr.HTML(label="Comparison", elem_id="compared")
    _answer(button, "compare", demonstration.compare, [*chosen, *controls], shown)
