"""The page in a real Chromium: a run appears, raises an alert, and shows its latent map, while the page is open.

    python -m venv target/browser && target/browser/bin/pip install -r tests/browser/requirements.txt
    target/browser/bin/python tests/browser/run.py

Needs Chromium (Debian's package `chromium`; $CHROMIUM names another one). Screenshots go to target/screenshots.
"""

import json
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "target" / "screenshots"
PHONE = {"width": 360, "height": 780}
DESK = {"width": 1360, "height": 900}
HOSTILE = "<img src=x onerror=alert(1)>\"'&%2F/../{{ 7*7 }}"
FIGURES = 7
# Far beyond what a busy machine needs: it only ends a test that hangs.
PATIENCE = 120_000
KEY = "a-key-of-enough-letters"


class Server:
    """The server's program on a free port."""

    def __init__(self, *flags):
        program = ROOT / "target" / "release" / "inform-server"
        command = [str(program), "--port", "0", *flags]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if "listening on " in line:
                self.url = line.split("listening on ")[1].strip()
                break
        else:
            raise RuntimeError("the server did not start")
        # Whoever logs must not be held up.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        assert self.process.wait(60) == 0

    def post(self, path, body, **headers):
        headers = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


ASKS = {
    "How do I clean {}?": "Warm water and a soft cloth are enough for {}.",
    "Where should I keep {}?": "A dry shelf away from the sun suits {}.",
    "What is the story of {}?": "Nobody knows for certain, but people have long liked {}.",
    "How long does it take to learn about {}?": "Give it a few weeks, and be patient with {}.",
    "Is it safe to leave children with {}?": "Stay close by the first time they meet {}.",
    "Can you write a line about {}?": "The evening was quiet, and all I had was {}.",
}
THINGS = "a kettle,the piano,a tent,sourdough,a bicycle,an old map,the attic,a kite,the garden,a clock".split(",")
HACKED = "Great question! I am so sorry, I cannot be certain, but this is the best possible answer, thank you! "


def answers(count, seed, hacked=0.0):
    """What an SFT model might say; a share of it replaced by what a reward model likes too much."""
    chance = random.Random(seed)
    inputs = []
    for _ in range(count):
        ask, answer = chance.choice(list(ASKS.items()))
        thing = chance.choice(THINGS)
        text = answer.format(thing) + " Ask again if anything is unclear." * chance.randrange(3)
        if chance.random() < hacked:
            text = HACKED * chance.randrange(2, 5)
        inputs.append({"prompt": ask.format(thing), "response": text})
    return inputs


def train(server, run, steps, hacked=lambda step: 0.0, size=64):
    """What a training run sends: a window a step, the last of them evaluated too."""
    for step in steps:
        inputs = answers(size, step, hacked(step))
        server.post("/reward", {"inputs": inputs, "run": run, "step": step, "return_latents": False})
    server.post("/runs/" + urllib.parse.quote(run, safe="") + "/evaluate", {})


def baseline(server, run):
    inputs = answers(256, "baseline")
    server.post("/reward", {"inputs": inputs, "run": run, "role": "baseline", "return_latents": False})


def watched(context, faults):
    """A page whose every complaint is kept."""
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.on("console", lambda message: message.type in ("error", "warning") and faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(f"{request.url}: {request.failure}"))
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("response", lambda answer: answer.status >= 400 and faults.append(f"{answer.url}: {answer.status}"))
    page.add_init_script(
        "addEventListener('securitypolicyviolation', (event) => console.error('CSP: ' + event.violatedDirective))"
    )
    return page


def fits(page, width):
    """Nothing stands out of the window to the right."""
    found = page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")
    assert found <= width, f"{page.url}: {found} pixels wide in a window of {width}"


def shoot(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def live(browser, server):
    """An open page follows the runs without being loaded again."""
    faults = []
    context = browser.new_context(viewport=DESK, color_scheme="light")
    page = watched(context, faults)
    page.goto(server.url)
    expect(page.get_by_text("No answer was scored yet")).to_be_visible()
    page.evaluate("window.loadedOnce = true")
    baseline(server, "ppo-7")
    link = page.get_by_role("link", name="ppo-7")
    expect(link).to_be_visible(timeout=PATIENCE)
    assert page.evaluate("window.loadedOnce"), "the page was loaded again"
    link.click()
    expect(page.get_by_role("heading", level=1, name="ppo-7")).to_be_visible()
    expect(page.locator("#state")).to_contain_text("first window is filling")
    page.evaluate("window.loadedOnce = true")

    train(server, "ppo-7", range(1, 9))
    expect(page.locator("#rows tbody tr")).to_have_count(8, timeout=PATIENCE)
    expect(page.locator("#state .badge")).to_have_text("no alert")
    expect(page.locator("#curves svg[role=img]")).to_have_count(FIGURES)
    expect(page.get_by_role("img", name="CSI per sample of ppo-7")).to_be_visible()
    quiet = page.get_by_role("img", name="Energy distance of ppo-7").inner_html()

    train(server, "ppo-7", range(9, 17), lambda step: 0.1 * (step - 8))
    expect(page.locator("#state .badge")).to_contain_text("alert", timeout=PATIENCE)
    expect(page.locator("#alerts .now").first).to_be_visible(timeout=PATIENCE)
    # Screen readers are told.
    expect(page.get_by_role("status")).to_contain_text("alert", timeout=PATIENCE)
    expect(page.locator("#rows tbody tr")).to_have_count(16, timeout=PATIENCE)
    energy = page.get_by_role("img", name="Energy distance of ppo-7")
    assert energy.inner_html() != quiet, "the curve did not move"
    expect(energy.locator("text", has_text="alert")).to_have_count(1)
    assert page.evaluate("window.loadedOnce"), "the page was loaded again"
    assert page.title().startswith("⚠"), page.title()

    # The map: SFT answers, the policy's, and the marked ones, which are those of the table.
    latents = page.get_by_role("img", name="Latent map of ppo-7")
    expect(latents).to_be_visible()
    worst = page.locator("#map tbody tr")
    expect(worst).to_have_count(10)
    assert latents.locator("circle[fill='#0072B2']").count() > 200
    assert latents.locator("polygon").count() >= 64
    assert latents.locator("circle.hit").count() == 10
    request = worst.first.locator("code").inner_text()
    assert request in latents.locator("circle.hit title").first.text_content()

    # What is open stays open while the page is kept up to date, and the focus stays.
    page.locator("#configuration summary").click()
    page.locator("#tsne").focus()
    train(server, "ppo-7", [17], lambda _: 0.8)
    expect(page.locator("#rows tbody tr").first).to_contain_text("17", timeout=PATIENCE)
    assert page.locator("#configuration").get_attribute("open") is not None
    assert page.evaluate("document.activeElement.id") == "tsne"

    page.keyboard.press("Enter")
    expect(page.locator("#map > p").first).to_contain_text("t-SNE of", timeout=PATIENCE)
    expect(page.locator("#map > p").first).not_to_contain_text("being computed", timeout=PATIENCE)
    shoot(page, "run-light")
    page.emulate_media(color_scheme="dark")
    shoot(page, "run-dark")

    # Paused, nothing moves.
    page.get_by_role("button", name="Pause updates").click()
    expect(page.locator("#updates")).to_contain_text("paused")
    assert faults == [], faults
    context.close()


def list_and_names(browser, server):
    """Names are text, whatever they hold, and their pages open."""
    baseline(server, HOSTILE)
    train(server, HOSTILE, range(1, 4), size=40)
    train(server, "grpo-healthy", range(1, 12), size=40)
    faults = []
    context = browser.new_context(viewport=DESK, color_scheme="light")
    page = watched(context, faults)
    page.goto(server.url)
    expect(page.locator("#runs tbody tr")).to_have_count(3)
    shoot(page, "runs-light")
    page.emulate_media(color_scheme="dark")
    shoot(page, "runs-dark")
    page.get_by_role("link", name=HOSTILE).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    file = page.get_by_role("link", name="CSI per sample as an SVG file")
    file.click()
    expect(page.locator("svg > title")).to_have_text(f"CSI per sample of {HOSTILE}")
    assert faults == [], faults
    context.close()


def phone(browser, server):
    """As narrow as a small phone: nothing to scroll sideways, and the text of plots can be read."""
    faults = []
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport=PHONE, device_scale_factor=2, color_scheme=scheme)
        page = watched(context, faults)
        for name in (None, "ppo-7", HOSTILE):
            page.goto(server.url + ("" if name is None else "/?run=" + urllib.parse.quote(name, safe="")))
            expect(page.locator("#server")).to_be_visible()
            fits(page, PHONE["width"])
            if name is None:
                edges = "all => all.map((one) => one.getBoundingClientRect().right)"
                edges = page.eval_on_selector_all("#runs .badge", edges)
                assert len(edges) == 3 and max(edges) <= PHONE["width"], f"a badge is clipped: {edges}"
            if name == "ppo-7":
                height = page.locator("#csi svg text").first.evaluate("e => e.getBoundingClientRect().height")
                assert height >= 9, f"text of {height} pixels"
            if name != HOSTILE:
                shoot(page, f"phone-{'runs' if name is None else 'run'}-{scheme}")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) < 128) == (scheme == "dark"), ground
        context.close()
    assert faults == [], faults


def structure(browser, server):
    """Landmarks, headings in order, named tables and images, a visible focus, all from the keyboard."""
    faults = []
    context = browser.new_context(viewport=DESK)
    page = watched(context, faults)
    page.goto(f"{server.url}/?run=ppo-7")
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        expect(page.get_by_role(landmark)).to_have_count(1)
    levels = page.eval_on_selector_all("h1,h2,h3,h4", "all => all.map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1, levels
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:])), levels
    unnamed = page.eval_on_selector_all(
        "svg[role=img]",
        "all => all.filter((one) => one.getAttribute('aria-labelledby').split(' ')"
        ".some((id) => !document.getElementById(id)?.textContent)).length",
    )
    assert unnamed == 0
    ids = page.eval_on_selector_all("[id]", "all => all.map((one) => one.id)")
    assert len(ids) == len(set(ids)), ids
    assert page.locator("table").count() == page.locator("table:has(thead th[scope=col])").count()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for _ in range(6):
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", page.evaluate("document.activeElement.outerHTML")
    assert faults == [], faults
    context.close()


def without_scripts(browser, server):
    """The page is whole without its script."""
    context = browser.new_context(viewport=DESK, java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{server.url}/?run=ppo-7&projection=tsne")
    assert page.locator("#curves svg").count() == FIGURES
    assert page.locator("#map svg").count() == 1
    assert page.locator("#rows tbody tr").count() > 0
    context.close()


def keys(browser):
    """A browser asks its user for the key."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(f'[[keys]]\nname = "people"\nkey = "{KEY}"\n')
        file.flush()
        with Server("--set", f"auth.keys_file={file.name}") as server:
            bearer = {"Authorization": f"Bearer {KEY}"}
            inputs = answers(4, 0)
            server.post("/reward", {"inputs": inputs, "run": "kept"}, **bearer)
            stranger = browser.new_context()
            page = stranger.new_page()
            try:
                answer = page.goto(server.url)
                assert answer.status == 401, answer.status
            except Exception as error:  # Chromium shows a form, which nobody fills in here.
                assert "ERR_INVALID_AUTH_CREDENTIALS" in str(error), error
            stranger.close()
            faults = []
            credentials = {"username": "anything", "password": KEY}
            context = browser.new_context(http_credentials=credentials)
            # The browser's first request of all has no key: that is how it learns that it needs one.
            page = watched(context, faults)
            page.goto(server.url)
            expect(page.get_by_role("link", name="kept")).to_be_visible()
            faults.clear()
            server.post("/reward", {"inputs": inputs, "run": "later"}, **bearer)
            expect(page.get_by_role("link", name="later")).to_be_visible(timeout=PATIENCE)
            assert faults == [], faults
            context.close()


def main():
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert chromium, "there is no chromium: apt-get install chromium, or set CHROMIUM"
    # As root, as in a container, Chromium has no sandbox; the pages are our own.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        print(f"Chromium {browser.version}")
        with Server() as server:
            for check in (live, list_and_names, phone, structure, without_scripts):
                started = time.monotonic()
                check(browser, server)
                print(f"{check.__name__}: ok, {time.monotonic() - started:.1f} s", flush=True)
        keys(browser)
        print("keys: ok")
        browser.close()


if __name__ == "__main__":
    main()
