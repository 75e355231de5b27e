"""The page as it is served: its endpoints, called by gradio's own client, and what it must not serve."""

import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
from foreign import save_detr
from pages import captions_of, images_of
from serving import free_port, served

from modeling_sit.demo.run import check_port
from modeling_sit.runtime.errors import SiTError

NEEDED = "gradio is not installed: pip install modeling-sit[demo]"
pytest.importorskip("gradio", reason=NEEDED)
httpx = pytest.importorskip("httpx", reason=NEEDED)
gradio_client = pytest.importorskip("gradio_client", reason=NEEDED)
page_of_gradio = pytest.importorskip("modeling_sit.demo.app")
AppError = gradio_client.exceptions.AppError


@pytest.fixture
def client_of_page(demonstrate, tmp_path, monkeypatch):
    """The page of the tiny SiT and the flat images, served; gives its address and a client."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    with served(demonstrate(port=free_port(), max_upload_megabytes=0.5, compare_with="random")) as url:
        yield url, gradio_client.Client(url, verbose=False, download_files=False)


def test_the_page_alive_with_every_input(client_of_page, own_file, tmp_path, flat_images):
    """One page for all, for it takes a second to start: each answer, each bad input, and after it the page is alive."""
    url, client = client_of_page
    own = gradio_client.handle_file(own_file(PIL.Image.new("RGB", (50, 40), (0, 0, 255))))

    page, canvas = client.predict(own, 0, api_name="/look")
    assert "50 x 40 pixels" in page
    assert canvas["background"]
    shown = images_of(client.predict(None, 1, "zeros", 0.5, 0.25, 0, api_name="/reconstruct"))
    changed = (shown["clean"] != shown["corrupted"]).any(-1)
    assert (shown["pasted"][~changed] == shown["clean"][~changed]).all() and changed.mean() >= 0.5

    painted = np.zeros((256, 256, 4), np.uint8)
    painted[:128] = 255
    layer = gradio_client.handle_file(own_file(PIL.Image.fromarray(painted), "layer.png"))
    editor = {"background": layer, "layers": [layer], "composite": layer}
    shown = images_of(client.predict(own, 0, editor, "zeros", 0, api_name="/reconstruct_painted"))
    changed = (shown["clean"] != shown["corrupted"]).any(-1)
    assert changed[:128].all() and not changed[128:].any()

    assert captions_of(client.predict(own, 0, 1, [1], api_name="/attend"))[2:] == ["head 1"]
    assert captions_of(client.predict(own, 0, 3, api_name="/neighbours"))[0].startswith("blue")
    assert "srcdoc" in client.predict("pca", api_name="/map")
    assert "before training" in client.predict(own, 0, "zeros", 0.5, 0, api_name="/compare")

    (tmp_path / "text.png").write_text("<b>no image</b>")
    (tmp_path / "<i>.png").write_text("no image")
    for bad, word in (("text.png", "text.png"), ("<i>.png", "no image")):
        with pytest.raises(AppError, match=word) as error:
            client.predict(gradio_client.handle_file(str(tmp_path / bad)), 0, api_name="/look")
        assert "<" not in str(error.value) and str(tmp_path) not in str(error.value)
    # Gradio checks first what the controls can give.
    for values, name, word in (
        ((None, 8), "look", "maximum value 7"),
        ((None, 0, 99, []), "attend", "maximum value 2"),
        ((None, 0, 1, [3]), "attend", "list of choices"),
        ((None, 0, -5), "neighbours", "minimum value 1"),
        ((None, 0, "noise", 5, 0.25, 0), "reconstruct", "maximum value 0.9"),
        (("mds",), "map", "list of choices"),
    ):
        with pytest.raises(AppError, match=word):
            client.predict(*values, api_name=f"/{name}")

    # No file but the uploaded ones: not of the machine, of the checkpoint, nor of the dataset as a file.
    files = (str(tmp_path / "model" / "config.json"), str(flat_images / "red" / "0.png"))
    for path in ("/etc/passwd", f"{tmp_path}/gradio/../model/config.json", "%2e%2e/%2e%2e/etc/passwd", *files):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/"):
            assert httpx.get(f"{url}{route}{path}").status_code in (403, 404)
        # Gradio's client would upload it as its own file.
        data = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, 0]}
        event = httpx.post(f"{url}gradio_api/call/look", json=data).json()["event_id"]
        answer = httpx.get(f"{url}gradio_api/call/look/{event}", timeout=60).text
        assert "event: error" in answer and "<img" not in answer

    large = np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8)
    with pytest.raises(Exception, match=r"(?i)413|too large|size"):
        client.predict(
            gradio_client.handle_file(own_file(PIL.Image.fromarray(large), "large.png")), 0, api_name="/look"
        )

    # Ten at once: each gets the answer to its own image.
    files = [
        gradio_client.handle_file(own_file(PIL.Image.new("RGB", (9 + side, 20), (0, side, 0)), f"{side}.png"))
        for side in range(10)
    ]
    with ThreadPoolExecutor(10) as pool:
        pages = list(pool.map(lambda file: client.predict(file, 0, api_name="/look")[0], files))
    assert all(f"{side}.png: {9 + side} x 20 pixels" in page for side, page in enumerate(pages))

    assert httpx.get(url).status_code == 200


def test_only_this_machine_reaches_it(demonstrate):
    settings = page_of_gradio.launch_settings(demonstrate())
    assert settings["server_name"] == "127.0.0.1" and settings["share"] is False and settings["allowed_paths"] == []
    assert settings["max_file_size"] == 20_000_000


def test_controls_start_within_their_range(demonstrate):
    """Also of few images: gradio refuses every other value, and with it the button's click."""
    for max_images in (4, 8):
        app = page_of_gradio.create_app(demonstrate(max_images=max_images, compare_with="random"))
        sliders = [each for each in app.blocks.values() if each.get_block_name() == "slider"]
        assert sliders and all(each.minimum <= each.value <= each.maximum for each in sliders)


def test_every_control_has_a_name(demonstrate):
    """For who does not see the page."""
    app = page_of_gradio.create_app(demonstrate(compare_with="random"))
    controls = [
        each for each in app.blocks.values() if each.get_block_name() in ("slider", "radio", "checkboxgroup", "file")
    ]
    assert len(controls) > 8 and all(each.label for each in controls)


def test_a_tab_that_can_show_nothing_says_why(demonstrate):
    app = page_of_gradio.create_app(demonstrate(dataset=None))
    texts = " ".join(str(each.value) for each in app.blocks.values() if each.get_block_name() == "html")
    assert texts.count("Start the demo with one") == 3 and "fine-tune it first" in texts


def test_a_model_without_an_encoder_says_so_in_each_tab(demonstrate, tmp_path):
    app = page_of_gradio.create_app(demonstrate(model_name_or_path=str(save_detr(tmp_path / "detr"))))
    texts = " ".join(str(each.value) for each in app.blocks.values() if each.get_block_name() == "html")
    assert texts.count("The model (detr) has no encoder") == 3 and texts.count("reconstructs nothing") == 1
    assert [each.label for each in app.blocks.values() if each.get_block_name() == "slider"][-1].startswith(
        "Lowest score"
    )


def test_a_port_in_use():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(SiTError) as error:
            check_port("127.0.0.1", other.getsockname()[1])
    assert error.value.argument == "port"
    check_port("127.0.0.1", free_port())


def test_no_address():
    with pytest.raises(SiTError) as error:
        check_port("no.such.host.invalid", 7860)
    assert error.value.argument == "host"
