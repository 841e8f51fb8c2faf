"""The page in a real browser: headless Chromium, as Debian's `chromium` and `chromium-driver` bring it."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from audiolm.audio import Waveform, read
from audiolm.model import AudioLM
from audiolm.provenance import detect
from audiolm.serving import process
from audiolm.serving.limits import Limits
from audiolm.serving.server import create_app

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is in the extra dev")
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no browser: apt-get install chromium chromium-driver")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--window-size=1320,1000"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # what the page asks of others comes to nothing, and to light
)
LIMITS = Limits(rate=0, samples=3)
# What is handed to the speakers, and when: (time, samples) of each piece.
LISTEN = """
window.heard = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when) {
  window.heard.push([when, this.buffer.length]);
  start.call(this, when);
};
"""


@contextmanager
def serving(model: AudioLM, keys: tuple[str, ...] = ()) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = process.server(create_app(model, LIMITS, keys), LIMITS)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)


@pytest.fixture(scope="module")
def address(tiny_model: AudioLM) -> Iterator[str]:
    with serving(tiny_model) as address:
        yield address


@pytest.fixture(scope="module")
def tone() -> Waveform:
    """What the microphone hears, over and over."""
    return Waveform(0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(48_000) / 48_000)[None], 48_000)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, tone: Waveform) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("browser")
    tone.write(folder / "tone.wav")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--use-file-for-fake-audio-capture={folder / 'tone.wav'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": LISTEN})
        yield browser
    finally:
        browser.quit()


class Page:
    """The page in the browser, in a user's words."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser, self.address = browser, address
        browser.get(address)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_async_script(
            f"const done = arguments[arguments.length - 1]; (async () => {{ {script} }})().then(done, (e) => done(`${{e}}`));",
            *arguments,
        )

    def until(self, condition: Callable[[], Any], seconds: float = 60.0) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if found := condition():
                    return found
            except (NoSuchElementException, StaleElementReferenceException):
                pass
            assert time.monotonic() < deadline, f"it did not come to pass; the page says {self.text('#error')!r}"
            time.sleep(0.05)

    def mode(self, name: str) -> None:
        self.one(f"label:has([value={name}])").click()

    def set(self, name: str, value: Any) -> None:
        script = "const it = document.querySelector(`[name=${arguments[0]}]`); it.value = arguments[1];"
        self.browser.execute_script(f"{script} it.dispatchEvent(new Event('input', {{ bubbles: true }}));", name, str(value))

    def example(self, number: int = 0, into: str = "#audio") -> None:
        self.until(lambda: len(self.all(f"{into} .examples button")) == 3)
        self.all(f"{into} .examples button")[number].click()
        self.until(lambda: self.text(f"{into} .length") == "4.4 s")

    def make(self) -> None:
        self.one("#go").click()
        self.until(lambda: self.text("#status").startswith("Done"))
        self.until(lambda: all("atermark found" in each.text for each in self.all(".take .verdict")))

    def save(self, folder: Path, number: int = 0) -> Waveform:
        """The sound, downloaded."""
        folder.mkdir()
        self.browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
        self.all(".take .save")[number].click()
        return read(self.until(lambda: next(folder.glob("*.wav"), None)))

    def colours(self, left: float, right: float, top: float, bottom: float) -> int:
        """How many colours a part (shares of its width and height) of the first take's picture has."""
        return self.browser.execute_script(
            """
            const [left, right, top, bottom] = arguments, picture = document.querySelector(".take canvas");
            const { width, height } = picture;
            const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
            copy.drawImage(picture, 0, 0);
            const part = [left * width, top * height, (right - left) * width, (bottom - top) * height];
            return new Set(new Uint32Array(copy.getImageData(...part).data.buffer)).size;
            """,
            *(left, right, top, bottom),
        )


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    """A page just opened. In the end: nothing went wrong in the console, and nobody else was asked for anything."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    yield Page(browser, address)
    browser.get("about:blank")
    assert complaints(browser) == []
    assert [url for url in requests(browser) if not url.startswith((f"{address}/", f"blob:{address}", "data:", "about:"))] == []


def complaints(browser: Any) -> list[str]:
    return [each["message"] for each in browser.get_log("browser") if each["level"] in ("SEVERE", "WARNING")]


def requests(browser: Any) -> list[str]:
    events = [json.loads(each["message"])["message"] for each in browser.get_log("performance")]
    return [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]


def test_an_example_goes_on(page: Page, tiny_model: AudioLM, female: Waveform, tmp_path: Path) -> None:
    page.example()
    page.set("seconds", 2.5)
    page.set("seed", 3)
    page.one("#go").click()
    page.until(lambda: page.browser.execute_script("return window.heard.length"))  # it sounds before it is done
    page.until(lambda: page.text("#status") == "Done: one sound.")
    assert page.text(".take h2") == "Continuation"
    assert page.text(".take .title p") == "of female, seed 3 · 6.9 s"
    page.until(lambda: page.text(".take .verdict").startswith("Watermark found: generated by this model"))
    page.until(lambda: "playing" not in page.one(".take .play").get_attribute("class"))
    pieces = page.browser.execute_script("return window.heard")
    assert sum(length for _, length in pieces) == round(6.9 * 16_000)
    for (when, length), (following, _) in pairwise(pieces):
        assert following > when + length / 16_000 - 1e-6  # a browser as slow as its machine may pause, but never overlaps

    expected = tiny_model.generate(female, seconds=2.5, seed=3)
    saved = page.save(tmp_path / "saved")
    assert (saved.samples - expected.samples).abs().max() <= 1 / 32768
    assert saved.trim(start=4.4).samples.abs().max() > 0.01
    assert detect(saved).found
    element = "const it = new Audio(document.querySelector('.save').href); await new Promise((f) => (it.oncanplaythrough = f));"
    assert page.run(f"{element} return it.duration;") == pytest.approx(6.9)

    assert page.colours(0.2, 0.9, 0.3, 0.55) > 100  # spectrogram
    assert page.colours(0.2, 0.9, 0.64, 0.69) >= 5  # semantic tokens
    assert page.colours(0.2, 0.9, 0.8, 0.9) >= 5  # fine ones


def test_pieces_follow_each_other_to_the_sample(page: Page) -> None:
    page.one("h1").click()  # without a click or a key a page is not allowed to sound
    heard, moved = page.run("""
        const { Sound, Player } = await import("/sound.js");
        const sound = new Sound(16000, 16000), player = new Player(() => {});
        sound.have = 6000;
        player.play(sound);
        for (const have of [9001, 12345, 16000]) { sound.have = have; player.feed(); }
        const before = player.position;
        await new Promise((go) => setTimeout(go, 400));
        const moved = player.position - before;
        player.stop();
        return [window.heard, moved];
    """)
    assert [length for _, length in heard] == [6000, 3001, 3344, 3655]
    for (when, length), (following, _) in pairwise(heard):
        assert following == pytest.approx(when + length / 16_000, abs=1e-9)
        assert following * 16_000 == pytest.approx(round(following * 16_000), abs=1e-4)
    assert moved > 0


def test_takes_side_by_side(page: Page, tiny_model: AudioLM, male: Waveform, tmp_path: Path) -> None:
    page.example(1)
    page.set("seconds", 2)
    page.set("samples", 3)
    page.make()
    assert [each.text for each in page.all(".take .details")] == [f"of male, seed {seed} ·" for seed in range(3)]
    tops = {each.location["y"] for each in page.all(".take")}
    assert len(tops) == 2  # two of them beside each other
    expected = tiny_model.generate(male, seconds=2, seed=2)
    assert (page.save(tmp_path / "third", 2).samples - expected.samples).abs().max() <= 1 / 32768
    page.all(".take .clear")[1].click()
    assert [each.text for each in page.all(".take .details")] == [f"of male, seed {seed} ·" for seed in (0, 2)]


def test_a_file_revoiced_reconstructed_and_a_voice_from_nothing(page: Page, male_path: Path, tiny_model: AudioLM) -> None:
    page.one("#audio input[type=file]").send_keys(str(male_path))
    page.until(lambda: page.text("#audio strong") == "prompt-male.flac")
    page.mode("reconstruct")
    page.set("codebooks", 2)
    page.make()
    assert page.text(".take .title p") == "of prompt-male.flac, levels 2 · 4.4 s"
    page.mode("revoice")
    page.example(0, "#voice")
    page.make()
    assert page.text(".take h2") == "Revoiced"
    page.mode("generate")
    page.set("seconds", 2)
    page.make()
    assert page.text(".take .title p") == "seed 0 · 2.0 s"
    assert len(page.all(".take")) == 3


def test_a_text_read_aloud(browser: Any, address: str, reading_model: AudioLM, tmp_path: Path) -> None:
    """Only a model with a text stage offers to speak."""
    silent = Page(browser, address)
    silent.until(lambda: silent.text("#model"))
    assert not silent.one("#speaks").is_displayed()
    with serving(reading_model) as address:
        reader = Page(browser, address)
        reader.until(lambda: reader.one("#speaks").is_displayed())
        reader.mode("speak")
        reader.one("#go").click()
        assert reader.until(lambda: reader.text("#error")) == "First write what is to be said."
        reader.set("text", "Good morning, and good luck.")
        reader.example(0, "#voice")
        reader.make()
        assert reader.text(".take .title p").startswith("by female, seed 0 · ")
        saved = reader.save(tmp_path / "said")
        assert saved.seconds == pytest.approx(reading_model.reading_seconds("Good morning, and good luck."))


def test_the_microphone(page: Page) -> None:
    page.one("#audio .record").click()
    page.until(lambda: page.text("#audio .record") >= "Stop, 1.0 s")
    page.one("#audio .record").click()
    page.until(lambda: page.text("#audio .length").endswith(" s"))
    assert float(page.text("#audio .length").split()[0]) >= 1.0
    page.set("seconds", 2)
    page.make()
    assert page.text(".take .details").startswith("of recording, seed 0")
    page.one("#audio .check").click()
    page.until(lambda: page.text("#audio .verdict").startswith("No watermark found"))


def test_keys_move_and_play(page: Page) -> None:
    page.example()
    place = page.one("#audio .picture")
    place.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert place.get_attribute("aria-valuetext") == "2.0 of 4.4 seconds"
    place.send_keys(Keys.SPACE)
    page.until(lambda: float(place.get_attribute("aria-valuenow")) > 2.0)
    assert page.one("#audio .play").get_attribute("aria-label") == "Pause: the recording"
    place.send_keys(Keys.SPACE)
    assert page.one("#audio .play").get_attribute("aria-label") == "Play: the recording"


def test_a_stop_keeps_what_is_there(page: Page) -> None:
    page.example()
    page.set("seconds", 30)
    page.one("#go").click()
    page.until(lambda: " of 34.4 s" in page.text(".take .length"))
    page.one("#stop").click()
    page.until(lambda: page.text("#status") == "Stopped.")
    assert page.text(".take .length").endswith("s, stopped")
    assert page.one(".take .save").is_displayed()
    assert page.text("#error") == ""


def test_everything_has_a_name(page: Page) -> None:
    page.example()
    page.set("seconds", 2)
    page.make()
    for mode in ("continue", "generate", "revoice", "reconstruct"):
        page.mode(mode)
        nodes = page.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        roles = ("button", "slider", "textbox", "spinbutton", "combobox", "checkbox", "radio", "link", "article", "main")
        found = [(each["role"]["value"], each["name"]["value"]) for each in nodes if each.get("role", {}).get("value") in roles]
        assert len(found) > 15
        assert [role for role, name in found if not name.strip()] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(page: Page, scheme: str) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    emulated = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
    try:
        page.example()
        page.set("seconds", 1)
        page.make()
        for mode in ("continue", "generate", "revoice", "reconstruct"):
            page.mode(mode)
            assert page.browser.execute_script("return document.scrollingElement.scrollWidth") == 360
        dark = page.browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert dark == ("rgb(247, 245, 240)" if scheme == "light" else "rgb(20, 22, 26)")
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_mistakes_in_the_servers_words(browser: Any, address: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no sound at all")
    page = Page(browser, address)
    page.one("#go").click()
    page.until(lambda: page.text("#error") == "First record something, choose a file, or take an example.")
    page.one("#audio input[type=file]").send_keys(str(tmp_path / "notes.txt"))
    page.until(lambda: "cannot be shown" in page.text("#audio .length"))
    page.one("#go").click()
    page.until(lambda: page.text("#error").startswith("Audio: not a sound file that can be read"))
    assert page.all(".take") == []
    assert page.text("#error").endswith("convert it to wav, flac, mp3, ogg or opus")
    page.example()
    page.one("summary").click()
    page.one("#temperature").send_keys("hot")
    page.one("#go").click()
    page.until(lambda: "temperature" in page.text("#error"))


def test_below_a_path_of_a_proxy(browser: Any, tiny_model: AudioLM, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = create_app

    def proxied(*arguments: Any) -> Any:
        app = plain(*arguments)

        async def proxy(scope: Any, receive: Any, send: Any) -> None:
            path = scope.get("path", "/audio/")  # of the page; the server's start and end have none
            own = path.removeprefix("/audio") if path.startswith("/audio/") else "/none/of/this/server"
            await app({**scope, "path": own}, receive, send)

        return proxy

    monkeypatch.setattr(f"{__name__}.create_app", proxied)
    with serving(tiny_model) as address:
        page = Page(browser, f"{address}/audio/")
        page.example()
        page.set("seconds", 1)
        page.make()
        assert len(page.all(".take")) == 1


def test_a_server_that_asks_for_a_key(browser: Any, tiny_model: AudioLM) -> None:
    with serving(tiny_model, ("sesame",)) as address:
        page = Page(browser, address)
        page.until(lambda: page.text("#error").startswith("An API key is needed"))
        page.one("#key").send_keys("sesame")
        page.one("#unlock").click()
        page.example()
        assert page.text("#error") == ""
        assert not page.one("#locked").is_displayed()
        browser.execute_script("sessionStorage.clear()")
        browser.get("about:blank")
