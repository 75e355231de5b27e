"""The page in headless Chromium: it is looked at, clicked, painted on and typed on as users do."""

import io
import re
import shutil

import numpy as np
import PIL.Image
import pytest
from pages import captions_of, images_of
from serving import free_port, served

pytestmark = pytest.mark.browser

pytest.importorskip("gradio", reason="gradio is not installed: pip install modeling-sit[demo]")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-demo")

IMAGES_AS_READ = re.compile('<img src="([^"]+)" alt="([^"]*)"><figcaption>([^<]*)</figcaption>')
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# WebGL without a GPU, for the canvas; and a sandbox cannot be nested in a container.
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader"]
PATIENCE = 120_000  # milliseconds, for busy machines
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1200, "height": 900}


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as library:
        # Its own first, then what the system calls so, which may be no browser but an advice to install one.
        for path in (None, *filter(None, map(shutil.which, CHROMIUM))):
            try:
                browser = library.chromium.launch(args=ARGUMENTS, executable_path=path)
                break
            except playwright.Error as error:
                problem = error.message.strip().splitlines()[0]
        else:
            pytest.skip(f"there is no Chromium that starts: playwright install chromium ({problem})")
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, demonstrate, tmp_path, monkeypatch):
    """The page of the tiny SiT on the flat images, opened; nothing but this machine is asked for anything."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    outside = []
    with served(demonstrate(port=free_port(), compare_with="random")) as url:
        page = chromium.new_page(viewport=DESKTOP)
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: outside.append(request.url) if not is_local(request.url) else None)
        page.goto(url, wait_until="domcontentloaded")
        page.wait_for_selector("#looked img")
        yield page
        page.close()
    assert outside == []


def is_local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def answer(page, place: str, act) -> str:
    """The figures of a place after an action has changed them."""
    before = figures_in(page, place)
    act()
    page.wait_for_function(
        "([place, before]) => { const now = [...document.querySelectorAll(place + ' figure')];"
        " return now.length && now.map(one => one.querySelector('img').src + one.innerText).join() !== before; }",
        arg=[place, ",".join(src + text for src, _, text in IMAGES_AS_READ.findall(before))],
    )
    return figures_in(page, place)


def figures_in(page, place: str) -> str:
    """The figures of a place as [`images_of`] reads them: browsers write attributes and entities their own way."""
    found = page.locator(f"{place} figure").evaluate_all(
        "all => all.map(one => [one.querySelector('img').src, one.querySelector('img').alt, one.innerText])"
    )
    return "".join(f'<img src="{src}" alt="{alt}"><figcaption>{text}</figcaption>' for src, alt, text in found)


def press(page, name: str):
    return lambda: page.get_by_role("button", name=name, exact=True).click()


def open_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def test_an_image_from_upload_to_every_tab(page, own_file, tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[..., 2] = 255
    path = own_file(PIL.Image.fromarray(pixels), "blue.png")
    looked = answer(page, "#looked", lambda: page.set_input_files("#file input[type=file]", path))
    assert captions_of(looked)[0].startswith("blue.png: 60 x 40 pixels")
    assert (images_of(looked)["as"].reshape(-1, 3) == (0, 0, 255)).all()

    # Every figure has its pixels on the screen, too, and not only in the page.
    shown = images_of(answer(page, "#reconstructed", press(page, "Reconstruct")))
    changed = (shown["clean"] != shown["corrupted"]).any(-1)
    assert changed.mean() >= 0.5 and (shown["pasted"][~changed] == (0, 0, 255)).all()
    first = page.locator("#reconstructed img").first
    assert first.evaluate("image => image.naturalWidth") == 256
    assert (np.median(pixels_of(first), axis=(0, 1)) == (0, 0, 255)).all()

    # A stroke across the upper half corrupts what it covers, and not the lower half.
    canvas = page.locator("#canvas canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    middle, side = box["x"] + box["width"] / 2, min(box["width"], box["height"], 256)
    top = box["y"] + box["height"] / 2 - side / 4
    page.mouse.move(middle - side / 4, top)
    page.mouse.down()
    page.mouse.move(middle + side / 4, top, steps=8)
    page.mouse.up()
    shown = images_of(answer(page, "#reconstructed", press(page, "Reconstruct what is painted")))
    changed = (shown["clean"] != shown["corrupted"]).any(-1)
    assert 0.01 < changed.mean() < 0.5 and not changed[160:].any()

    open_tab(page, "Attention")
    assert captions_of(answer(page, "#attention-shown", press(page, "Show attention")))[0] == "image"
    open_tab(page, "Neighbors")
    neighbors = captions_of(answer(page, "#neighbors-shown", press(page, "Find neighbors")))
    assert neighbors[0].startswith("blue, cosine")
    open_tab(page, "Map")
    press(page, "Draw the map")()
    points = page.frame_locator("#map-shown iframe").locator("svg.map path")
    points.first.wait_for()
    assert points.count() == 8
    points.first.hover(force=True)
    page.frame_locator("#map-shown iframe").locator("#image img").wait_for(state="visible")
    open_tab(page, "Predict")
    assert page.get_by_text("fine-tune it first").is_visible()
    open_tab(page, "Compare")
    assert "mean of heads" in captions_of(answer(page, "#compared", press(page, "Compare")))

    # A text file: one message, and the page goes on.
    (tmp_path / "text.png").write_text("no image")
    clear = page.locator("#file").get_by_label("Clear").first
    of_the_dataset = captions_of(answer(page, "#looked", clear.click))[0]
    assert of_the_dataset.startswith("blue/0.png (blue)")
    page.set_input_files("#file input[type=file]", str(tmp_path / "text.png"))
    page.get_by_text(re.compile("text.png: it is no image")).first.wait_for()
    clear.click()
    looked = answer(page, "#looked", lambda: page.set_input_files("#file input[type=file]", path))
    assert captions_of(looked)[0].startswith("blue.png")


def test_by_keyboard_on_a_phone(page):
    page.set_viewport_size(PHONE)
    number = page.locator("#number input[type=number]")
    looked = answer(page, "#looked", lambda: (number.fill("5"), number.press("Enter")))
    assert captions_of(looked)[0].startswith("red/1.png (red)")
    for tab, button, place in (
        ("Reconstruct", "Reconstruct", "#reconstructed"),
        ("Attention", "Show attention", "#attention-shown"),
    ):
        if tab != "Reconstruct":
            page.get_by_role("tab", name=tab, exact=True).focus()
            page.keyboard.press("Enter")
        page.get_by_role("button", name=button, exact=True).focus()
        shown = answer(page, place, lambda: page.keyboard.press("Enter"))
        assert len(captions_of(shown)) == 4
        widths = page.locator(f"{place} img").evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
        assert max(widths) <= PHONE["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def pixels_of(element) -> np.ndarray:
    """What is on the screen where an element is: `(height, width, 3)`, uint8."""
    with PIL.Image.open(io.BytesIO(element.screenshot())) as image:
        return np.asarray(image.convert("RGB"))
