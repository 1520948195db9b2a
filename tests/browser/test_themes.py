"""What is ours can be seen, in light and dark: in Django's own look, and with ``--ds tests.settings.unfold`` and
``tests.settings.jazzmin`` in theirs."""

from __future__ import annotations

import base64

import pytest
from playwright.sync_api import Locator, Page

from tests.browser.test_accessibility import LIST, PROJECTS, faulty, serious_violations
from tests.testapp.models import Project

pytestmark = [pytest.mark.browser, pytest.mark.markup, pytest.mark.django_db(transaction=True)]

#: Contrast that WCAG asks of graphics; surfaces and lines may be fainter.
GRAPHICS, SURFACE, SHADE = 3.0, 1.15, 1.02
#: Elements that are ours.
OURS = (".pcrud #content-main", "#pcrud-strip", ".pcrud-object-tasks", ".pcrud-notice", ".pcrud-panel")
PAGES = [
    f"{LIST}?q=add&within=24h",
    f"{LIST}{{failed}}/change/",
    f"{LIST}{{running}}/change/",
    f"{LIST}{{failed}}/edit/",
    f"{LIST}failures/",
    f"{LIST}locks/",
    f"{LIST}schedules/",
    f"{LIST}cluster/",
    f"{LIST}groups/trio/",
    PROJECTS,
    f"{PROJECTS}{{project}}/change/",
    "/admin/",
]

#: Colours as the browser shows them, whatever way they are written, and their contrast by WCAG 2.
COLOURS = """
window.colours = (() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const luminance = (pixel) => pixel.slice(0, 3)
    .map((value) => value / 255)
    .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const mixed = (layers) => {
    context.fillStyle = "white";
    context.fillRect(0, 0, 1, 1);
    layers.forEach((layer) => { context.fillStyle = layer; context.fillRect(0, 0, 1, 1); });
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const layers = (element) => {
    const found = [];
    for (let place = element; place; place = place.parentElement) {
      found.unshift(getComputedStyle(place).backgroundColor);
    }
    return found;
  };
  const contrast = (one, other) => {
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  return {
    contrast,
    // Between an element's surface and what is around it.
    ofSurface: (element) => contrast(mixed(layers(element)), mixed(layers(element.parentElement))),
    // Between its border and what is around it.
    ofBorder: (element) => {
      const style = getComputedStyle(element);
      if (style.borderBottomStyle === "none" || style.borderBottomWidth === "0px") {
        return 1;
      }
      const around = layers(element.parentElement);
      return contrast(mixed([...around, style.borderBottomColor]), mixed(around));
    },
  };
})();
"""


@pytest.fixture(params=["light", "dark"])
def looked_at(request, page, live_server, tolerated) -> Page:
    page.emulate_media(color_scheme=request.param)
    # Jazzmin fetches a font from elsewhere.
    page.route(lambda url: not url.startswith(live_server.url), lambda route: route.fulfill(body=""))
    page.add_init_script(COLOURS)
    return page


def contrasts(elements: Locator, of: str) -> list[float]:
    return elements.evaluate_all(f"elements => elements.map(colours.{of})")


def faint(page: Page, selector: str, least: float, *of: str) -> list[str]:
    """Return the visible elements of ours with less contrast; ``of`` are the measures, of which the best counts."""
    elements = page.locator(f":is({', '.join(OURS)}) :is({selector}):visible")
    measured = zip(elements.all(), *(contrasts(elements, one) for one in of), strict=True)
    return [
        f"{element.evaluate('element => element.outerHTML')[:120]}: {values}"
        for element, *values in measured
        if max(values) < least
    ]


def bar_contrasts(page: Page, bar: Locator) -> tuple[float, float]:
    """Return the contrast between a bar's two parts, and between its rest and what is around it."""
    box = bar.bounding_box()
    clip = {"x": box["x"] - 4, "y": box["y"], "width": box["width"] + 8, "height": box["height"]}
    picture = base64.b64encode(page.screenshot(clip=clip)).decode()
    return tuple(
        page.evaluate(
            """async (picture) => {
              const bytes = Uint8Array.from(atob(picture), (letter) => letter.charCodeAt(0));
              const image = await createImageBitmap(new Blob([bytes], {type: "image/png"}));
              const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
              context.drawImage(image, 0, 0);
              const at = (x) => [...context.getImageData(x, image.height / 2, 1, 1).data];
              const [around, done, rest] = [at(1), at(14), at(image.width - 14)];
              return [colours.contrast(done, rest), colours.contrast(rest, around)];
            }""",
            picture,
        )
    )


def test_what_is_ours_can_be_seen_and_read(looked_at, busy):
    found = {}
    for address in PAGES:
        looked_at.goto(address.format(**busy, project=Project.objects.first().pk))
        found[address] = faults_of(looked_at)
    assert faulty(found) == {}


def faults_of(page: Page) -> list[str]:
    """Return what of ours is too faint on this page, and what axe-core finds there."""
    inputs = "input:not([type=checkbox], [type=submit], [type=hidden]), select, textarea"
    faults = [
        *faint(page, ".pcrud-icon", GRAPHICS, "ofSurface"),
        *faint(page, ".button, [type=submit]", SURFACE, "ofSurface", "ofBorder"),
        *faint(page, inputs, SURFACE, "ofSurface", "ofBorder"),
        *faint(page, ".pcrud-tab-count", SHADE, "ofSurface"),
        *faint(page, "a[aria-current]:is(.pcrud-tabs a)", GRAPHICS, "ofBorder"),
    ]
    for bar in page.locator("progress[value]:not([value='0'])").all():
        done, rest = bar_contrasts(page, bar)
        if done < GRAPHICS or rest < SURFACE:
            faults.append(f"{bar.evaluate('element => element.outerHTML')[:120]}: {done}, {rest}")
    return [*faults, *serious_violations(page, within=OURS)]
