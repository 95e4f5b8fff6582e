"""Pictures of the page as users see it, from a real server and a real browser: `python screens.py FOLDER`."""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "server"))

from chromium import Browser, Page, chromium
from PIL import Image
from serving import Running

from bitnet_inference import LLM
from bitnet_inference.server import Models, make_app, page
from bitnet_inference.server.metrics import Metrics
from bitnet_inference.server.store import Store
from bitnet_inference.server.tenants import Tenants

BEGINNING = "Once upon a time there was a little fox who wanted to learn to swim."
COLOURS = 128  # of a picture, which keeps it small


def main() -> None:
    """Make them all."""
    folder = Path(sys.argv[1])
    metrics = Metrics()
    with (
        tempfile.TemporaryDirectory() as place,
        Store(Path(place) / "keys.db") as store,
        Tenants(store, charged=metrics.charged) as tenants,
        LLM(observer=metrics.observer("stories")) as llm,
        chromium(Path(place)) as browser,
    ):
        key = _make_keys(tenants)
        app = make_app(Models({"stories": llm}), tenants=tenants, metrics=metrics, endpoints=page.ENDPOINTS)
        server = Running(app)
        _photograph(folder, browser, server.url, key)
        server.stop()


def _make_keys(tenants: Tenants) -> str:
    if tenants.keys is None:
        raise ValueError("tenants: expected some with a store")
    tenants.keys.create("Night shift", tokens_per_minute=20_000, requests_per_minute=60)
    tenants.keys.create("Reading room", models={"stories"}, budget=2_000_000)
    tenants.keys.revoke(tenants.keys.create("Old laptop")[0].id)
    return tenants.keys.create("Ada", role="admin")[1]


def _photograph(folder: Path, browser: Browser, url: str, key: str) -> None:
    views: dict[str, tuple[dict[str, object], Callable[[Page], None]]] = {
        "page-chat": ({"width": 1180, "height": 760}, _chat),
        "page-dark": ({"width": 1180, "height": 760, "dark": True}, _settings),
        "page-phone": ({"width": 360, "height": 740, "scale": 2}, _chat),
        "page-admin": ({"width": 1180, "height": 760}, _admin),
    }
    for name, (settings, show) in views.items():
        one = browser.open(f"{url}/", **settings)  # type: ignore[arg-type]
        one.until("document.querySelector('#key-dialog').open")
        one.run("document.querySelector('#key').focus()")
        one.write(key)
        one.press("Enter")
        one.until("document.querySelector('#model').value && !document.querySelector('#key-dialog').open")
        show(one)
        one.picture(folder / f"{name}.png")
        _shrink(folder / f"{name}.png")
        one.close()


def _say(one: Page, text: str) -> None:
    one.run("document.querySelector('#input').focus()")
    one.write(text)
    one.press("Enter")
    one.until(
        "document.querySelector('#stop').hidden && document.querySelector('.message:last-child .figures').innerText"
    )


def _chat(one: Page) -> None:
    for name, value in {"temperature": 0.7, "max_tokens": 120, "seed": 11}.items():
        one.run(
            f"(() => {{ const field = document.querySelector('#sampling-{name}'); field.value = '{value}';"
            "field.dispatchEvent(new Event('input')); })()"
        )
    _say(one, "The old lighthouse keeper had a cat.")
    one.run("document.querySelector('#new').click()")
    _say(one, BEGINNING)


def _settings(one: Page) -> None:
    _chat(one)
    one.click("#open-settings")


def _admin(one: Page) -> None:
    _chat(one)
    one.click("#open-admin")
    one.until("document.querySelector('#usage-table tbody tr')")
    # Somebody is at work while the curves are drawn.
    one.run(
        f"""(async () => {{
          const {{ stream }} = await import('/page/api.js');
          const messages = [{{ role: 'user', content: {BEGINNING!r} }}];
          const ask = async (seed) => {{
            for await (const _ of stream('v1/chat/completions', {{ model: 'stories', messages, seed, stream: true }}));
            if (!window.enough) await ask(seed + 10);
          }};
          window.asked = Promise.all([1, 2, 3, 4, 5].map(ask));
        }})()"""
    )
    one.until("[...document.querySelectorAll('polyline')].every((line) => line.points.numberOfItems > 22)", 60)
    one.run("void (window.enough = true)")


def _shrink(picture: Path) -> None:
    with Image.open(picture) as image:
        small = io.BytesIO()
        image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            small, "PNG", optimize=True
        )
    picture.write_bytes(small.getvalue())


if __name__ == "__main__":
    main()
