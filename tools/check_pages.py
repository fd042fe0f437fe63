"""Open every page of a built book in Chromium, as readers do: on a phone and a desk, light and dark, by keyboard.

    python tools/check_pages.py [_build/html] [--pages 08_tradeoff,intro] [--screenshots _build/screenshots]

Nothing may reach the network. Each fault is a line: page, what it is, where it was seen. `make check-pages` installs
what this needs (the extra ``pages``); Chromium is the system's.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[1]
WIDTHS, THEMES = (390, 1400), ("light", "dark")
#: Weight of a page, of the first one with the theme and of every other without; first paint of the first at 10 Mbit/s.
MEGABYTES, SECONDS = 1.5, 2.0
SEARCHED = "pneumothorax"
#: Milliseconds for the plots of a page, or the search, on a slow machine.
PATIENCE = 60_000
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]

# What sticks out of the page: the innermost element whose box does, unless a parent lets its content scroll.
_WIDE = """() => {
  const page = document.scrollingElement;
  if (page.scrollWidth <= page.clientWidth + 1) return [];
  const wide = [...document.body.querySelectorAll("*")].filter(e => {
    if (e.getBoundingClientRect().right <= page.clientWidth + 1) return false;
    for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
      if (getComputedStyle(p).overflowX !== "visible") return false;
    return true; });
  const inner = wide.filter(e => !wide.some(o => o !== e && e.contains(o)));
  const name = e => e ? e.tagName.toLowerCase() + [...e.classList].slice(0, 2).map(c => "." + c).join("") : "body";
  return [`scrolls sideways: ${page.scrollWidth} px wide (${name(inner[0])})`]; }"""

# Text beyond the edge of its plot, under another control, or of a figure that lacks its words.
_FIGURES = """() => {
  const faults = [], over = (a, b) => a.width && b.width && a.left < b.right - 1 && b.left < a.right - 1
      && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  document.querySelectorAll(".js-plotly-plot").forEach((plot, i) => {
    const box = plot.getBoundingClientRect(), of = `plot ${i + 1}`;
    if (!box.width) return;
    if (!plot.querySelector(".main-svg")) { faults.push(`${of} is not drawn`); return; }
    for (const text of plot.querySelectorAll(".main-svg text")) {
      const b = text.getBoundingClientRect(), shown = text.textContent.trim();
      if (!shown || !b.width || text.closest(".hoverlayer")) continue;
      if (b.left < box.left - 2 || b.right > box.right + 2 || b.top < box.top - 2 || b.bottom > box.bottom + 2)
        faults.push(`${of}: “${shown.slice(0, 40)}” is cut off`);
    }
    const controls = [...plot.querySelectorAll(".updatemenu-container, .slider-container")];
    for (const legend of plot.querySelectorAll(".legend"))
      if (controls.some(c => over(c.getBoundingClientRect(), legend.getBoundingClientRect())))
        faults.push(`${of}: a control covers the legend`);
    const figure = plot.closest("figure");
    if (!figure?.querySelector("figcaption")?.textContent.trim()) faults.push(`${of} has no caption`);
    if (!figure?.getAttribute("aria-label")) faults.push(`${of} has no text alternative`);
    if (!figure?.querySelector("details table")) faults.push(`${of} has no table of its data`);
  });
  return faults; }"""

# Words of a plot over other words. Those that are turned are left out: their boxes overlap though they do not. So are
# the names of points, which the data may put on one another.
_LABELS = r"""() => [...document.querySelectorAll(".js-plotly-plot")].flatMap((plot, i) => {
  const faults = [], turned = e => /rotate\((?!0)/.test(e.getAttribute("transform"));
  const words = [...plot.querySelectorAll(".main-svg text")]
    .filter(e => e.textContent.trim() && !turned(e) && !e.closest(".hoverlayer, .legend, .textpoint"))
    .map(e => [e.textContent.trim().slice(0, 30), e.getBoundingClientRect()]).filter(([, box]) => box.width);
  words.forEach(([first, a], k) => words.slice(k + 1).forEach(([second, b]) => {
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    const least = Math.min(a.width * a.height, b.width * b.height);
    if (wide > 2 && high > 2 && wide * high > 0.2 * least)
      faults.push(`plot ${i + 1}: “${first}” and “${second}” cover each other`);
  }));
  return faults; })"""

# The luminance of the page and of each plot's paper: a light card on a dark page is a fault, and the reverse.
_PAPER = """() => {
  const light = color => { const [r, g, b, a = 1] = (color.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    return a < 0.5 ? null : 0.2126 * r + 0.7152 * g + 0.0722 * b > 127; };
  const page = light(getComputedStyle(document.body).backgroundColor) ?? true;
  return [...document.querySelectorAll(".js-plotly-plot")].flatMap((plot, i) => {
    const paper = plot.querySelector(".main-svg");
    return paper && (light(getComputedStyle(paper).backgroundColor) ?? page) !== page
      ? [`plot ${i + 1} is ${page ? "dark on a light" : "light on a dark"} page`] : []; }); }"""

_CONTROLS = """() => {
  const figures = [...document.querySelectorAll(".cell_output")].filter(c => c.querySelector(
    ".js-plotly-plot, figure"));
  return figures.map((figure, i) => {
    figure.dataset.figure = i;
    const found = figure.querySelectorAll(
      "select, input, button, summary, .updatemenu-header, .updatemenu-button, .slider-grip-rect");
    return [...found].filter(e => e.getBoundingClientRect().width && !e.closest(".modebar, details > :not(summary)")
        && !e.disabled).map((control, k) => {
      control.dataset.control = `${i}-${k}`;
      const name = control.getAttribute("aria-label") || control.textContent.trim().slice(0, 30);
      return [control.dataset.control, control.tagName.toLowerCase(), `figure ${i + 1}: “${name}”`,
              control.tabIndex >= 0 || control.matches("summary")];
    }); }).flat(); }"""


# Terms whose definition, when the term has the focus, makes the page wider than the screen.
_TERMS = """() => {
  const page = document.scrollingElement;
  return [...document.querySelectorAll(".term a")].filter(term => {
    term.focus();
    return page.scrollWidth > page.clientWidth + 1;
  }).map(term => `the definition of “${term.textContent}” runs off the page`); }"""


@dataclass
class Faults:
    """Faults of all pages: what -> where it was seen, in the order they were found."""

    seen: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, page: str, what: str, where: str = "") -> None:
        """Note a fault.

        Args:
            page: its name.
            what: the fault in plain words.
            where: width and theme; "" for all.
        """
        places = self.seen.setdefault((page, what), [])
        if where not in places:
            places.append(where)

    def lines(self) -> list[str]:
        """A line per fault."""
        return [
            f"{page} · {what}" + (f" ({', '.join(filter(None, where))})" if any(where) else "")
            for (page, what), where in self.seen.items()
        ]


def chromium() -> str | None:
    """The system's Chromium, or None."""
    return next((path for path in map(shutil.which, CHROMIUM) if path), None)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve ``folder`` on a free local port; gives the address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def check_links(folder: Path, names: Sequence[str], faults: Faults) -> None:
    """Every link within the book leads to a file, and to an element of that name in it.

    Args:
        folder: of the pages.
        names: of the pages to look at, relative to ``folder``.
        faults: where to note what is wrong.
    """

    @functools.cache
    def names_in(path: Path) -> set[str]:
        page = BeautifulSoup(path.read_text("utf-8"), "html.parser")
        return {str(tag[key]) for tag in page.find_all(True) for key in ("id", "name") if tag.has_attr(key)}

    for name in names:
        page = BeautifulSoup((folder / name).read_text("utf-8"), "html.parser")
        for href in dict.fromkeys(str(tag["href"]) for tag in page.find_all("a", href=True)):
            url = urlsplit(href)
            if url.scheme or url.netloc:
                continue
            target = ((folder / name).parent / unquote(url.path)).resolve() if url.path else folder / name
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                faults.add(name, f"a link leads nowhere: {href}")
            elif url.fragment and target.suffix == ".html" and unquote(url.fragment) not in names_in(target):
                faults.add(name, f"a link leads to no place on its page: {href}")


class Visit:
    """One page at one width: loaded once, looked at in each theme."""

    def __init__(self, page, address: str, name: str, width: int, faults: Faults):
        """Load the page.

        Args:
            page: of playwright.
            address: of the server.
            name: of the page, relative to the book.
            width: of the window in pixels.
            faults: where to note what is wrong.
        """
        self.page, self.address, self.name, self.where, self.faults = page, address, name, f"{width} px", faults
        self.bytes, self.plotly = [0, 0], False  # of the page and of the theme
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=THEMES[0])
        listeners = {
            "console": lambda m: self.fault(f"console: {m.text[:200]}") if m.type in ("error", "warning") else None,
            "pageerror": lambda error: self.fault(f"console: {str(error).splitlines()[0][:200]}"),
            "response": self._answered,
            "requestfailed": lambda r: self.fault(f"asks for {r.url[:120]}, which does not come with the book"),
        }
        for event, listener in listeners.items():
            page.on(event, listener)
        page.goto(f"{address}/{name}", wait_until="load")
        self.settle()
        self.weight = tuple(self.bytes)  # what is shown later, such as a picture for dark pages, loads later
        self.close = lambda: [page.remove_listener(event, listener) for event, listener in listeners.items()]

    def _answered(self, response) -> None:
        if response.status >= 400:
            self.fault(f"asks for {urlsplit(response.url).path}, which is not there")
        if "plotly" in response.url:
            self.plotly = True
        elif response.url.startswith(self.address):
            theme = "/_static/" in response.url or "searchindex" in response.url
            self.bytes[theme] += int(response.headers.get("content-length") or 0)

    def fault(self, what: str) -> None:
        """Note a fault of this page."""
        self.faults.add(self.name, what, self.where)

    def settle(self) -> None:
        """Wait until every plot is drawn and nothing moves; a plot that is not is noted later."""
        with suppress(Exception):
            self.page.wait_for_function(
                "() => [...document.querySelectorAll('.js-plotly-plot, .plotly-graph-div')]"
                ".every(p => p.querySelector('.main-svg'))",
                timeout=PATIENCE,
            )
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def look(self, theme: str, axe, screenshot: Path | None) -> None:
        """Everything that can be seen.

        Args:
            theme: "light" or "dark".
            axe: of axe_playwright_python, or None.
            screenshot: file to write, or None.
        """
        self.where = f"{self.page.viewport_size['width']} px {theme}"
        self.page.emulate_media(color_scheme=theme)
        self.page.wait_for_timeout(150)
        self.settle()
        for script in (_WIDE, _FIGURES, _LABELS, _PAPER):
            for what in dict.fromkeys(self.page.evaluate(script)):
                self.fault(what)
        if axe:
            # Without preload: axe would fetch style sheets from the wrong folder, and be a fault of the page itself.
            for broken in axe.run(
                self.page, {"exclude": [[".main-svg"]]}, {"resultTypes": ["violations"], "preload": False}
            ).response["violations"]:
                if broken["impact"] in ("serious", "critical"):
                    node = broken["nodes"][0]
                    self.fault(f"axe, {broken['id']}: {broken['help']} ({len(broken['nodes'])}×, {node['target'][-1]})")
        if screenshot:
            screenshot.parent.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=screenshot, full_page=True, type="jpeg", quality=70)

    def read(self) -> None:
        """Open every definition and every answer of a quiz by keyboard."""
        for what in self.page.evaluate(_TERMS):
            self.fault(what)
        for choice in self.page.locator("details.quiz > summary").all():
            choice.press("Enter")
            if not choice.evaluate(
                "e => e.parentElement.open && e.parentElement.textContent.trim().length > e.textContent.trim().length"
            ):
                self.fault(f"the quiz does not answer “{choice.text_content().strip()[:30]}”")

    def toggle(self) -> None:
        """Hide and show the first and the last series of every legend with the keyboard."""
        for i, plot in enumerate(self.page.locator(".js-plotly-plot:has(.legendtoggle)").all()):
            if not plot.is_visible():  # in a folded solution
                continue
            items = plot.locator(".legendtoggle")
            for k in {0, items.count() - 1}:
                states = [plot.inner_html()]
                for _ in range(2):  # a second time shows the series again
                    items.nth(k).focus()
                    self.page.keyboard.press("Enter")
                    self.page.wait_for_timeout(120)
                    states.append(plot.inner_html())
                if len(set(states[:2])) < 2 or len(set(states[1:])) < 2:
                    self.fault(f"plot with a legend {i + 1}: item {k + 1} does nothing when a key is pressed")

    def operate(self) -> None:
        """Reach every control of a figure with Tab, use it with the keyboard, and see the figure change."""
        keys = {"select": ("ArrowDown", "ArrowUp"), "input": ("ArrowRight", "ArrowLeft", "Space")}
        for control, tag, name, reached in self.page.evaluate(_CONTROLS):
            if not reached:
                self.fault(f"{name} is not reached by Tab")
                continue
            self.page.focus(f"[data-control='{control}']")
            if self.page.evaluate("() => document.activeElement.dataset.control") != control:
                self.fault(f"{name} takes no focus")
                continue
            figure = f"[data-figure='{control.split('-')[0]}']"
            # What is drawn and where: a choice that only marks itself does not count.
            drawn = "'svg, img, canvas, [style], details'"
            shown = (
                f'() => [...document.querySelector("{figure}").querySelectorAll({drawn})]'
                ".map(e => [e.outerHTML, e.open, e.getBoundingClientRect().height].join()).join()"
            )
            before = self.page.evaluate(shown)
            for key in keys.get(tag, ("Enter",)):
                self.page.keyboard.press(key)
                self.page.wait_for_timeout(120)
                if self.page.evaluate(shown) != before:
                    break
            else:
                self.fault(f"{name} does nothing when a key is pressed")


def check_first_paint(browser_page, address: str, name: str, faults: Faults) -> float:
    """Seconds to the first paint of a page at 10 Mbit/s: the best of three, since other work slows a machine down.

    Args:
        browser_page: of playwright, with an empty cache.
        address: of the server.
        name: of the page.
        faults: where to note what is wrong.
    """
    session = browser_page.context.new_cdp_session(browser_page)
    session.send("Network.enable")
    session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    speed = {"offline": False, "latency": 40, "downloadThroughput": 10e6 / 8, "uploadThroughput": 10e6 / 8}
    session.send("Network.emulateNetworkConditions", speed)
    best = float("inf")
    for _ in range(3):
        browser_page.goto(f"{address}/{name}", wait_until="load")
        paint = browser_page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
        best = min(best, (paint or float("inf")) / 1000)
    if best > SECONDS:
        faults.add(name, f"the first paint takes {best:.1f} s at 10 Mbit/s, more than {SECONDS:g}")
    session.detach()
    return best


def check_search(page, address: str, faults: Faults) -> None:
    """The search finds `SEARCHED`.

    Args:
        page: of playwright.
        address: of the server.
        faults: where to note what is wrong.
    """
    page.goto(f"{address}/search.html?q={SEARCHED}")
    try:
        page.wait_for_selector("#search-results li a", timeout=PATIENCE)
    except Exception:
        faults.add("search.html", f"the search does not find “{SEARCHED}”")


def check(folder: Path, names: Sequence[str] = (), screenshots: Path | None = None, say=print) -> list[str]:
    """Check a built book.

    Args:
        folder: of its pages.
        names: of the pages to look at ("intro.html"); () for all.
        screenshots: folder to write a picture of every page to, or None.
        say: called with a line per page: its weight.

    Returns:
        A line per fault.

    Raises:
        ModuleNotFoundError: playwright or axe is not installed.
        FileNotFoundError: no Chromium, or no page.
    """
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    folder, program, faults, axe = Path(folder).resolve(), chromium(), Faults(), Axe()
    made = {"search.html", "genindex.html", "py-modindex.html", "index.html"}
    every = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.html")) if path.name not in made]
    pages = [name for name in every if "_static" not in name and (not names or Path(name).stem in names)]
    if program is None or not pages:
        raise FileNotFoundError("there is no Chromium" if program is None else f"{folder} has no such page")
    first = next((name for name in every if Path(name).stem == "intro"), every[0])
    check_links(folder, pages, faults)
    with served(folder) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        page = browser.new_page()
        page.set_default_timeout(300_000)  # a slow machine is no fault of the page
        page.route(lambda url: not url.startswith((address, "data:", "blob:")), lambda route: route.abort())
        for name in pages:
            for width in WIDTHS:
                visit = Visit(page, address, name, width, faults)
                for theme in THEMES:
                    picture = screenshots and screenshots / f"{Path(name).stem}-{width}-{theme}.jpg"
                    # axe takes seconds on a long page: each width once, and each theme once.
                    rules = (width == WIDTHS[0]) == (theme == THEMES[1])
                    visit.look(theme, axe if rules else None, picture)
                visit.read()
                if width == WIDTHS[-1]:
                    visit.operate()
                    visit.toggle()
                    plots = page.locator(".js-plotly-plot").count()
                    if visit.plotly and not plots:
                        faults.add(name, "loads plotly.js and has no plot")
                    weight = (sum(visit.weight) if name == first else visit.weight[0]) / 1e6
                    if weight > MEGABYTES:
                        faults.add(name, f"weighs {weight:.1f} MB beside plotly.js, more than {MEGABYTES}")
                    say(f"{name}: {weight:.2f} MB{' and plotly.js' if visit.plotly else ''}, {plots} plots")
                visit.close()
        if "search.html" in os.listdir(folder):
            check_search(page, address, faults)
        if first in pages:
            say(f"{first}: first paint after {check_first_paint(page, address, first, faults):.1f} s at 10 Mbit/s")
        browser.close()
    return faults.lines()


def main(arguments: Sequence[str] | None = None) -> int:
    """``python tools/check_pages.py``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "_build" / "html", help="of the built pages")
    parser.add_argument("--pages", default="", help="names of pages, comma-separated (default: all)")
    parser.add_argument("--screenshots", type=Path, help="folder for a picture of every page")
    options = parser.parse_args(arguments)
    if chromium() is None:
        print("The pages are not checked: there is no Chromium on this machine (apt-get install chromium).")
        return 0
    try:
        faults = check(options.folder, [n for n in options.pages.split(",") if n], options.screenshots)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        print(f"The pages cannot be checked: {error}", file=sys.stderr)
        return 2
    print("\n".join(faults) if faults else "Every page is as it should be.")
    if faults:
        print(f"{len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
