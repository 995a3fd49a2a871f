"""The live page in headless Chromium, as tests/page.rs asks for it:

    page_browser.py ADDRESS AXE SHOTS [--kill PID] [--ended]

Opens the page on a desk and on a phone, light and dark; fails on a request to another server, an
error on the console, an accessibility violation (axe-core at AXE, `-` for none) or a chart without
a value. With --kill a worker is killed, and its loss must show. SHOTS is a folder for
screenshots."""

import os
import signal
import sys
import time

from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
LOST_WITHIN_MS = 10_000


def fail(message):
    sys.exit("page_browser: " + message)


class Opened:
    """A page that notes what it should not do."""

    def __init__(self, browser, address, **options):
        self.address, self.foreign, self.errors = address, [], []
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.on("request", self.requested)
        self.page.on(
            "console", lambda line: self.errors.append(line.text) if line.type == "error" else None
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.page.wait_for_function(
            "() => document.getElementById('state').textContent !== 'connecting'"
        )

    def requested(self, request):
        if not request.url.startswith((self.address, "data:")):
            self.foreign.append(request.url)

    def check(self, name, axe):
        width = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        if width[0] > width[1]:
            fail(f"{name}: {width[0]} pixels wide on a screen of {width[1]}")
        if axe != "-":
            # The policy allows no script of ours: axe runs in the debugger's name.
            self.page.evaluate(open(axe, encoding="utf-8").read())
            found = self.page.evaluate("axe.run()")
            violations = [(one["id"], one["nodes"][0]["html"][:120]) for one in found["violations"]]
            if violations:
                fail(f"{name}: {violations}")
            print(f"{name}: {len(found['passes'])} accessibility rules pass")
        if self.foreign or self.errors:
            fail(f"{name}: requests {self.foreign}, errors {self.errors}")

    def shot(self, folder, name):
        self.page.screenshot(path=os.path.join(folder, name + ".png"), full_page=True)


def check_values(page):
    page.wait_for_selector("#loss-chart canvas")
    page.wait_for_selector("#accuracy-chart canvas")
    lit = """() => { const c = document.querySelector('#loss-chart canvas');
        const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        return pixels.some((v) => v > 0); }"""
    page.wait_for_function(lit)
    page.click("#log")
    if page.get_attribute("#log", "aria-pressed") != "true":
        fail("the log switch is not pressed")
    page.wait_for_selector("#loss-chart canvas")
    for place in ["loss-values", "stages", "workers", "events", "config", "about"]:
        if not page.text_content("#" + place).strip():
            fail(f"#{place} is empty")


def check_kill(page, pid):
    rows = "[...document.querySelectorAll('#workers tr')]"
    restarts = rows + ".reduce((n, r) => n + Number(r.cells[6].textContent), 0)"
    if page.evaluate(restarts) != 0:
        fail("a worker was restarted before")
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    # A function, not an expression: the policy of the page forbids eval.
    lost = "() => document.getElementById('events').textContent.includes('lost worker-')"
    page.wait_for_function(lost, timeout=LOST_WITHIN_MS)
    shown = time.monotonic() - began
    announced = page.text_content("#announcement")
    if "lost worker-" not in announced:
        fail(f"the loss is not announced: {announced!r}")
    page.wait_for_function(f"() => {restarts} === 1", timeout=LOST_WITHIN_MS)
    print(f"a killed worker shows after {shown:.2f} s")


def check_end(page):
    if "done" not in page.text_content("#state"):
        fail(f"state {page.text_content('#state')!r}")
    page.wait_for_function("() => document.querySelectorAll('#figures svg').length >= 3")
    if not page.is_visible("#figures-title"):
        fail("the figures are hidden")


def main():
    address, axe, shots, *rest = sys.argv[1:]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        desk = Opened(browser, address, viewport={"width": 1280, "height": 900})
        if "--before" in rest:
            desk.shot(shots, "before")
            desk.check("before the first step", axe)
        else:
            check_values(desk.page)
            if "--ended" in rest:
                check_end(desk.page)
            desk.shot(shots, "desk-light")
            desk.check("desk, light", axe)
            phone = {"width": 360, "height": 740}
            dark = Opened(
                browser, address, viewport=phone, color_scheme="dark", reduced_motion="reduce"
            )
            check_values(dark.page)
            dark.shot(shots, "phone-dark")
            dark.check("phone, dark", axe)
            dark.context.close()
        if "--kill" in rest:
            check_kill(desk.page, int(rest[rest.index("--kill") + 1]))
            desk.shot(shots, "killed")
            desk.check("after a loss", axe)
        browser.close()


main()
