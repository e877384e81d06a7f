"""Reports in a real browser: at three widths, light and dark, by keyboard, printed."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_pages import page as report_page

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

WIDTHS = (1400, 800, 400)
KINDS = ("classes", "findings", "volumes", "hostile")
_LOOK = r"""
() => {
  const problems = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) problems.push(`page ${root.scrollWidth} wide`);
  const number = text => (text.match(/[\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const part = value => (value /= 255) <= 0.04045
      ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = element => {
    for (let one = element; one; one = one.parentElement) {
      const color = number(getComputedStyle(one).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0] : [255, 255, 255];
  };
  let seen = 0;
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || !element.getClientRects().length || element.tagName === "SCRIPT") continue;
    seen += 1;
    const style = getComputedStyle(element);
    const name = `${element.tagName} "${element.textContent.trim().slice(0, 40)}"`;
    const [one, other] = [light(number(style.color)), light(behind(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) problems.push(`contrast ${ratio.toFixed(2)} of ${name}`);
    if (size < 12) problems.push(`${size} px: ${name}`);
    if (element.closest(".scroll")) continue;
    if (element.scrollWidth > element.clientWidth + 1 && style.display !== "inline")
      problems.push(`clipped: ${name}`);
    const box = element.getBoundingClientRect();
    if (box.right > root.clientWidth + 1 || box.left < -1) problems.push(`outside: ${name}`);
  }
  return [seen, problems];
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
        options = {"executable_path": found, "args": ["--no-sandbox"]}
        try:
            launched = playwright.chromium.launch(**options)
        except sync_api.Error as error:
            pytest.skip(f"no chromium that runs: {str(error).splitlines()[0]}")
        yield launched
        launched.close()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_overflows_is_clipped_or_pale(browser: Any, kind: str) -> None:
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        opened = context.new_page()
        opened.goto(report_page(kind).as_uri())
        for width in WIDTHS:
            opened.set_viewport_size({"width": width, "height": 900})
            seen, problems = opened.evaluate(_LOOK)
            assert seen > 40
            assert problems == [], (scheme, width)
        context.close()


def test_what_is_wrong_on_a_page_is_seen(browser: Any) -> None:
    opened = browser.new_page(viewport={"width": 400, "height": 900})
    opened.goto(report_page("other").as_uri())
    wrong = {
        "contrast 2.": "color: #999; background: #fff",
        "page 9": "min-width: 900px",
        "clipped": "width: 20px; white-space: nowrap; overflow: hidden",
        "px: P": "font-size: 8px",
        "outside": "position: relative; left: -50px",
    }
    for problem, style in wrong.items():
        opened.evaluate(
            "style => { const one = document.createElement('p'); one.id = 'wrong';"
            " one.textContent = 'some words that are long'; one.style = style;"
            " document.querySelector('main').append(one); }",
            style,
        )
        assert any(problem in one for one in opened.evaluate(_LOOK)[1]), problem
        opened.evaluate("document.getElementById('wrong').remove()")
    assert opened.evaluate(_LOOK)[1] == []
    opened.close()


def test_hostile_names_run_nothing_in_a_browser(browser: Any) -> None:
    context = browser.new_context()
    opened = context.new_page()
    events: list[str] = []
    context.expose_binding("steal", lambda *_: events.append("stolen"))
    opened.on("dialog", lambda dialog: events.append(dialog.message))
    opened.on("request", lambda request: events.append(request.url))
    opened.on("pageerror", lambda error: events.append(str(error)))
    path = report_page("hostile")
    opened.goto(path.as_uri())
    for _ in range(12):
        opened.keyboard.press("Tab")
    for element in opened.query_selector_all("[onerror], [onload], svg, iframe, body script"):
        events.append(element.evaluate("one => one.outerHTML.slice(0, 60)"))
    assert events[0] == path.as_uri()
    others = [one for one in events[1:] if not one.startswith(("data:image/png", "<script>\nfor"))]
    assert [one for one in others if not one.startswith("<script>for")] == []
    context.close()


def test_the_slider_moves_by_keys_and_says_where_it_is(browser: Any) -> None:
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(report_page("volumes").as_uri())
    first = opened.locator(".viewer").first
    slider = first.locator("input")
    assert slider.get_attribute("aria-valuetext") == "Slice 3 of 4"
    assert first.locator(".slice:visible .which").all_inner_texts() == ["Slice 3 of 4"]
    slider.focus()
    opened.keyboard.press("ArrowLeft")
    assert first.locator(".slice:visible .which").all_inner_texts() == ["Slice 2 of 4"]
    assert slider.get_attribute("aria-valuetext") == "Slice 2 of 4"
    opened.keyboard.press("End")
    assert first.locator(".slice:visible .which").all_inner_texts() == ["Slice 4 of 4"]
    outline = slider.evaluate("one => getComputedStyle(one).outlineStyle")
    assert outline == "solid"  # the focus can be seen
    assert opened.get_by_label("Slice of case", exact=False).count() >= 3
    context.close()


def test_without_script_the_middle_slice_stands_alone(browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(report_page("volumes").as_uri())
    assert opened.locator(".slice:visible").count() == 3
    assert opened.locator(".control:visible").count() == 0
    context.close()


def test_a_table_is_saved_and_the_page_is_printed(browser: Any, tmp_path: Path) -> None:
    context = browser.new_context(accept_downloads=True, color_scheme="dark")
    opened = context.new_page()
    opened.goto(report_page("volumes").as_uri())
    with opened.expect_download() as waiting:
        opened.locator('a[download="volumes.csv"]').click()
    waiting.value.save_as(tmp_path / "volumes.csv")
    assert (tmp_path / "volumes.csv").read_text(encoding="utf-8-sig").startswith("case,structure,")
    opened.emulate_media(media="print")
    assert opened.locator(".control:visible, .save:visible, nav:visible").count() == 0
    color = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert color == "rgb(255, 255, 255)"
    assert opened.pdf(path=tmp_path / "report.pdf", format="A4")[:5] == b"%PDF-"
    context.close()
