"""``cmslap compare``: what its page holds, and that it works in a browser."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import cmslap
from cmslap.cli import main
from cmslap.evaluation.evaluate import quality
from cmslap.imaging import imresize
from cmslap.inference.compare import ComparisonError, assemble, enlarge, resized, shrink
from cmslap.inference.page import duration, render


@pytest.fixture
def network():
    return cmslap.CMSLapSRN(depth=1, recursions=1, channels=2, shared_conv=1).eval()


@pytest.fixture
def checkpoint(tmp_path, network):
    path = tmp_path / "models" / "tiny.safetensors"
    cmslap.save_model(network, path)
    return str(path)


def random_image(width, height, mode="RGB"):
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(np.random.randint(0, 256, (height, width, *channels), dtype=np.uint8))


def compare(image, name, models, scale, original=None):
    return assemble(name, image.size, enlarge(image, models, scale), original)


def decoded(version):
    kind, _, data = version.image.partition(";base64,")
    assert kind.startswith("data:image/")
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_versions_are_what_was_computed(network, mode):
    image = random_image(23, 17, mode)
    made = compare(image, "a.png", {"net": network}, scale=2)
    bicubic, ours = made.versions
    assert [bicubic.name, ours.name] == ["bicubic", "net"]
    assert (made.source, made.size) == ((23, 17), (46, 34))
    colours = "RGBA" if "A" in mode else "RGB"  # WebP has no gray
    visible = np.array(image.getchannel("A").resize((46, 34), 0) if "A" in mode else Image.new("L", (46, 34), 1)) > 0
    for version, expected in ((bicubic, resized(image, (46, 34))), (ours, cmslap.upscale(image, 2, network))):
        pixels, wanted = (np.array(i.convert(colours)) for i in (decoded(version), expected))
        opaque = wanted[..., -1] > 0 if "A" in mode else visible
        np.testing.assert_array_equal(pixels[opaque], wanted[opaque])
        assert version.seconds > 0
        assert version.quality is None


def test_quality_beside_an_original_is_that_of_the_tables(network):
    small, original = shrink(random_image(51, 45), 2)
    assert (original.size, small.size) == ((50, 44), (25, 22))
    made = compare(small, "a.png", {"net": network}, scale=2, original=original)
    truth, low = (torch.from_numpy(np.array(image)).double().permute(2, 0, 1) / 255 for image in (original, small))
    assert [version.name for version in made.versions] == ["bicubic", "net", "original"]
    expected = quality(imresize(low, 2), truth, 2)
    assert made.versions[0].quality.psnr == pytest.approx(expected.psnr, abs=1e-9)
    assert made.versions[0].quality.ssim == pytest.approx(expected.ssim, abs=1e-9)


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_other_depths_are_shown_in_8_bits(network, mode):
    values = np.random.rand(12, 13)
    image = Image.fromarray(values.astype(np.float32) if mode == "F" else np.rint(values * 65535).astype(np.uint16))
    made = compare(image, "a.tif", {"net": network}, scale=2)
    assert decoded(made.versions[0]).size == (26, 24)


def test_what_no_page_can_show_is_refused(network):
    with pytest.raises(ComparisonError, match="crop the image or give a smaller --scale"):
        compare(Image.new("L", (4000, 3000)), "a.png", {"net": network}, scale=4)
    with pytest.raises(ComparisonError, match="3x2 pixels cannot be shrunk 4 times"):
        shrink(Image.new("L", (3, 2)), 4)


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.alternatives = [], []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "poster")]
        if tag == "img" and "src" in dict(attributes):
            self.alternatives.append(dict(attributes)["alt"])


def test_the_page_needs_no_other_file_and_escapes_names(network):
    name = '<b>"quoted" & odd</b>.png'
    version = compare(random_image(20, 20), name, {"<net>": network}, scale=2)
    page = render([version], "<title>", "a & b")
    links = Links()
    links.feed(page)
    assert all(link.startswith("data:") for link in links.found)
    assert "url(" not in page
    assert "@import" not in page
    assert links.alternatives == [f"{name}, bicubic", f"{name}, <net>"]
    assert '<b>"' not in page
    assert "<net>" not in page
    assert "Copyright (c) 2019 Dmitry Snisarenko" in page  # the component's licence goes where it goes
    assert not re.search("{[{%]", re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))


def test_means_stand_above_several_images(network):
    made = []
    for name in "ab":
        small, original = shrink(random_image(40, 40), 2)
        made.append(compare(small, name, {"net": network}, scale=2, original=original))
    page = render(made, "two", "")
    mean = np.mean([comparison.versions[1].quality.psnr for comparison in made])
    assert f'<th scope="row">net</th><td>{mean:.2f}</td>' in page
    assert "Mean over" not in render(made[:1], "one", "")
    assert "∞ dB" in render(
        [compare(Image.new("L", (40, 40)), "flat", {}, scale=2, original=Image.new("L", (80, 80)))], "flat", ""
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0001, "1 ms"), (0.0346, "35 ms"), (0.9996, "1.0 s"), (59.96, "1 min 0 s"), (179.7, "3 min 0 s")],
)
def test_durations_round_before_they_are_divided(seconds, text):
    assert duration(seconds) == text


def test_the_command(tmp_path, checkpoint, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    random_image(40, 44).save("in/a.png")
    random_image(41, 40, "RGBA").save("in/b.png")
    (tmp_path / "in" / "damaged.png").write_text("no image")
    command = ["compare", "in", "-o", "page.html", "--original", "-s", "2", "-m", checkpoint, "--device", "cpu"]
    assert main(command) == 1  # one image was damaged, and the page has the others
    captured = capsys.readouterr()
    assert captured.err.startswith("cmslap compare: error: in/damaged.png: not an image in a known format")
    assert captured.err.count("\n") == 1
    assert captured.out.startswith("page.html: a page of 2 of 3 images")
    assert "a.png, original" in (tmp_path / "page.html").read_text()
    assert main(command) == 1
    assert "page.html exists; give --overwrite" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium, with what its console says."""
    paths = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in paths:
        pytest.skip("chromium and chromedriver are not installed")
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = paths[0]
    folder = tmp_path_factory.mktemp("chromium")
    for argument in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "force-device-scale-factor=1",
        f"user-data-dir={folder}",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with selenium.Chrome(options, selenium.ChromeService(paths[1])) as driver:
        yield driver


@pytest.fixture
def page(browser, tmp_path, network):
    """A page of two images, open in the browser."""
    made = []
    for name, (width, height) in (("wide.png", (200, 80)), ("high.png", (90, 150))):
        small, original = shrink(random_image(width, height), 2)
        made.append(compare(small, name, {"net": network}, scale=2, original=original))
    (tmp_path / "page.html").write_text(render(made, "2 images", "a note"), encoding="utf-8")
    browser.set_window_size(1200, 900)
    browser.get((tmp_path / "page.html").as_uri())
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def find(page, selector):
    return page.find_element("css selector", selector)


def transforms(page):
    script = "return [...document.querySelectorAll('.view img')].map(i => getComputedStyle(i).transform)"
    return page.execute_script(script)


def test_the_slider_moves(page):
    from selenium.webdriver import ActionChains, Keys

    slider = find(page, "img-comparison-slider")
    exposure = "return document.querySelector('img-comparison-slider').value"
    assert page.execute_script(exposure) == 50
    ActionChains(page, 50).move_to_element(slider).click_and_hold().move_by_offset(100, 0).release().perform()
    width = slider.size["width"]
    assert page.execute_script(exposure) == pytest.approx(50 + 100 * 100 / width, abs=1)
    assert float(slider.get_attribute("aria-valuenow")) == pytest.approx(page.execute_script(exposure), abs=0.5)
    before = page.execute_script(exposure)
    ActionChains(page, 50).key_down(Keys.ARROW_LEFT).pause(0.3).key_up(Keys.ARROW_LEFT).perform()
    assert page.execute_script(exposure) < before


def test_touch_moves_the_slider_and_the_magnifier(page):
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    slider = find(page, "img-comparison-slider")
    before = transforms(page)
    actions = ActionBuilder(page, mouse=PointerInput("touch", "finger"), duration=50)
    finger = actions.pointer_action
    finger.move_to(slider).pointer_down().move_by(40, 2).move_by(120, 4).pointer_up()
    actions.perform()
    assert page.execute_script("return document.querySelector('img-comparison-slider').value") > 55
    assert transforms(page) != before


def test_the_magnifier_follows_the_pointer(page):
    from selenium.webdriver import ActionChains

    slider = find(page, "img-comparison-slider")
    width, height = slider.size["width"], slider.size["height"]
    views = [find(page, ".view").size[side] for side in ("width", "height")]
    for x, y in ((-0.2, -0.2), (0.2, 0.2), (0.4, -0.4)):
        ActionChains(page, 50).move_to_element_with_offset(slider, int(x * width), int(y * height)).perform()
        shown = [[float(n) for n in re.findall(r"-?[\d.]+", text)] for text in transforms(page)[:3]]
        assert shown[0] == shown[1] == shown[2]  # every version shows the same part
        assert shown[0][0] == 4  # times
        for pointed, length, window, moved in zip((x, y), (200, 80), views, shown[0][4:], strict=True):
            corner = min(max((0.5 + pointed) * length * 4 - window / 2, 0), length * 4 - window)
            assert -moved == pytest.approx(corner, abs=4 * 200 / width + 1)
    assert len(set(map(str, transforms(page)[3:]))) == 1  # the other image's views stand still, all alike


def test_the_keyboard_moves_the_magnifier_and_changes_its_zoom(page):
    from selenium.webdriver import ActionChains, Keys

    views = find(page, ".views")
    page.execute_script("arguments[0].focus()", views)
    before = transforms(page)
    ActionChains(page).send_keys(Keys.ARROW_LEFT * 40).perform()
    assert transforms(page)[0].startswith("matrix(4, 0, 0, 4, 0, ")
    assert transforms(page)[3:] == before[3:]  # the other image's
    ActionChains(page).send_keys("+").perform()
    assert find(page, "[name=zoom]:checked").get_attribute("value") == "8"
    assert all(text.startswith("matrix(8, 0, 0, 8,") for text in transforms(page))
    ActionChains(page).send_keys("-", "-", "-", "-", "-").perform()
    assert find(page, "[name=zoom]:checked").get_attribute("value") == "1"


def test_each_side_of_the_divider_shows_what_was_chosen(page):
    from selenium.webdriver.support.select import Select

    shown = "return [...document.querySelectorAll('img-comparison-slider img')].slice(0, 2).map(i => i.alt)"
    assert page.execute_script(shown) == ["wide.png, bicubic", "wide.png, net"]
    Select(find(page, "select[data-slot=first]")).select_by_visible_text("original")
    assert page.execute_script(shown) == ["wide.png, original", "wide.png, net"]
    loaded = "return [...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt)"
    assert page.execute_script(loaded)


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [1400, 500])
def test_nothing_overflows_and_text_stands_out(page, scheme, width):
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    colours = [
        page.execute_script(f"return getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")
    ]
    ink, paper = (np.mean([int(n) for n in re.findall(r"\d+", colour)[:3]]) for colour in colours)
    assert (ink - paper > 100) if scheme == "dark" else (paper - ink > 100)
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
