"""The page in a real browser, opened from disk: Debian's `chromium` and `chromium-driver`, driven by selenium."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from benchmarks.records.record import save_record
from benchmarks.report.page import build_report

pytestmark = pytest.mark.usefixtures("unsaved")

RESULTS = Path(__file__).parents[3] / "results"
SHIPPED, KERNELS = RESULTS / "published.csv", RESULTS / "kernels" / "profile.json"
WIDTHS = (390, 1440)
CONTRAST = 4.5
"""Of text and what is behind it (WCAG 2.1, 1.4.3, level AA)."""
LEAST_CONTRAST = """
const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
const behind = element => {
  for (let e = element; e; e = e.parentElement) {
    const found = numbers(getComputedStyle(e).backgroundColor);
    if (found.length < 4 || found[3] > 0) return found;
  }
};
const found = [...document.querySelectorAll("body *")]
  .filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
  .filter(e => !["SCRIPT", "title"].includes(e.nodeName))
  .map(e => {
    const style = getComputedStyle(e);
    const [a, b] = [light(numbers(e instanceof SVGElement ? style.fill : style.color)), light(behind(e))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.nodeName + " " + e.textContent.trim().slice(0, 40)];
  });
return found.sort((a, b) => a[0] - b[0])[0];
"""


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; without it, or without its driver, the tests are skipped."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install selenium)")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("no chromium with chromedriver on the path (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(built_run, tmp_path_factory):
    """The address of a page with every block there is."""
    out = tmp_path_factory.mktemp("browser") / "run"
    shutil.copytree(built_run, out)
    build_report(out, SHIPPED, kernels=KERNELS)
    return (out / "index.html").as_uri()


def opened(browser, page, width=1440, theme="light"):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page)
    browser.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    return browser


def column(browser, place, body="table tbody"):
    script = "return [...document.querySelector(arguments[0]).rows].map(row => row.cells[arguments[1]].textContent)"
    return browser.execute_script(script, body, place)


def heading(browser, text):
    buttons = browser.find_elements("css selector", "th button")
    return next(button for button in buttons if button.text.startswith(text))


def test_the_console_is_silent(browser, page):
    opened(browser, page)
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(browser, page, width):
    opened(browser, page, width)
    assert browser.execute_script("return window.innerWidth") == width
    sizes = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    whole, shown = browser.execute_script(sizes)
    assert whole <= shown
    outside = """
    const edge = document.documentElement.clientWidth + 0.5;
    return [...document.querySelectorAll("body *")].filter(e => !e.closest(".box table, svg *"))
      .filter(e => e.getBoundingClientRect().right > edge).map(e => e.nodeName + "." + e.className)"""
    assert browser.execute_script(outside) == []


def test_wide_tables_scroll_in_their_box(browser, page):
    opened(browser, page, 390)
    boxes = "return [...document.querySelectorAll('.box')].map(box => [box.scrollWidth, box.clientWidth])"
    widths = browser.execute_script(boxes)
    assert all(shown < 390 for _, shown in widths)
    assert max(whole for whole, _ in widths) > 390


def test_a_heading_sorts_best_first_then_the_other_way_then_not(browser, page):
    opened(browser, page)
    before = column(browser, 0)
    button = heading(browser, "MSE")
    orders = []
    for _ in range(3):
        button.click()
        place = browser.execute_script("return arguments[0].parentElement.cellIndex", button)
        sorted_as = browser.execute_script("return arguments[0].parentElement.ariaSort", button)
        orders.append((sorted_as, [float(cell.split()[0]) for cell in column(browser, place)]))
    values = sorted(orders[0][1])
    assert orders[:2] == [("ascending", values), ("descending", values[::-1])]
    assert orders[2][0] is None
    assert column(browser, 0) == before
    assert column(browser, 0, "table tfoot") == ["real images"]


def test_the_keyboard_sorts_too_and_dashes_come_last(browser, page):
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    button = heading(browser, "ELBO")
    for best in ("NVAE", "Residual VAE"):
        button.send_keys(Keys.ENTER)
        names = column(browser, 0)
        assert (names[0], names[-1]) == (best, "AE")
    heading(browser, "Model").send_keys(Keys.SPACE)
    assert column(browser, 0) == ["AE", "NVAE", "Residual VAE", "VAE"]


def test_an_entry_of_a_legend_hides_its_shapes_and_shows_them_again(browser, page):
    opened(browser, page)
    key = browser.find_element("css selector", ".keys button")
    script = "return [...arguments[0].closest('figure').querySelectorAll('.s0')].map(e => getComputedStyle(e).display)"
    for hidden in (True, False):
        key.click()
        shown = browser.execute_script(script, key)
        assert len(shown) > 1
        assert {display == "none" for display in shown} == {hidden}
        assert key.get_attribute("aria-pressed") == str(not hidden).lower()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_in_both_themes_and_the_button_changes_them(browser, page, theme):
    opened(browser, page, theme=theme)
    background = "return getComputedStyle(document.body).backgroundColor"
    first = browser.execute_script(background)
    assert (first == "rgb(255, 255, 255)") == (theme == "light")
    for _ in range(2):
        least = browser.execute_script(LEAST_CONTRAST)
        assert least[0] >= CONTRAST, least
        browser.find_element("id", "theme").click()
    assert browser.execute_script(background) == first


def test_no_shape_is_black_in_the_dark(browser, tmp_path, make_record):
    """The seventh row's colour is the text's; matplotlib leaves out a fill that is black."""
    for index in range(7):
        save_record(make_record(f"row{index}"), tmp_path / f"trial{index}")
    build_report(tmp_path)
    opened(browser, (tmp_path / "index.html").as_uri(), theme="dark")
    colours = """
    return [...document.querySelectorAll(".panels :is(path, use, text)")].map(e => getComputedStyle(e))
      .map(style => [style.fill, style.stroke]).flat()"""
    found = set(browser.execute_script(colours))
    assert "rgb(0, 0, 0)" not in found
    assert "rgb(228, 231, 234)" in found


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(browser, page, theme):
    spec = importlib.util.find_spec("axe_playwright_python") or importlib.util.find_spec("axe_core_python")
    if spec is None:
        pytest.skip("axe is not installed (pip install axe-core-python)")
    (script,) = Path(spec.origin).parent.rglob("axe.min.js")
    opened(browser, page, theme=theme)
    browser.execute_script(script.read_text())
    found = browser.execute_async_script("axe.run().then(arguments[0])")
    assert len(found["passes"]) > 10
    assert [(v["id"], [node["html"][:200] for node in v["nodes"][:3]]) for v in found["violations"]] == []


def test_labels_that_try_to_be_code_do_nothing(browser, tmp_path, make_record):
    label = "<img src=x onerror=document.title='bad'>"
    save_record(make_record("vae", label=label, notes=["<script>document.title='bad'</script>"]), tmp_path / "trial")
    build_report(tmp_path)
    opened(browser, (tmp_path / "index.html").as_uri())
    assert browser.title == "quick: mnist-5k"
    assert browser.get_log("browser") == []
