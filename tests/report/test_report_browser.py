"""The report in a real browser: nothing scrolls sideways at phone and desktop width, nothing is logged, the read-out works."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest
import report_folders as made

from tauon.report import render

CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)

HARNESS = """<!DOCTYPE html><meta charset="utf-8"><body>%s<script>
const found = [];
const look = () => {
  for (const f of document.querySelectorAll("iframe")) {
    const d = f.contentDocument, w = f.contentWindow, e = d.documentElement;
    const wide = [...d.querySelectorAll("body *")].filter(x => {
      const r = x.getBoundingClientRect();
      return r.right > w.innerWidth + 1 && !x.closest(".scroll") && !x.closest("svg") && !x.closest(".tip");
    }).map(x => x.tagName + "." + x.className);
    const cut = [...d.querySelectorAll(".scroll:has(> .stack)")].filter(x => x.scrollWidth > x.clientWidth + 1).map(x => x.getAttribute("aria-label"));
    let tip = null;
    const plot = d.querySelector("figure[data-chart] .plot");
    if (plot) {
      const r = plot.getBoundingClientRect();
      plot.dispatchEvent(new w.PointerEvent("pointermove", {clientX: r.left + r.width, clientY: r.top + 5, bubbles: true}));
      const t = d.querySelector(".tip");
      tip = {text: t.textContent, shown: !t.hidden && t.offsetWidth > 0, inside: t.getBoundingClientRect().right <= w.innerWidth};
    }
    const text = d.querySelector("h1"), paper = w.getComputedStyle(d.body).backgroundColor;
    found.push({name: f.title, width: w.innerWidth, scroll: e.scrollWidth, wide, cut, tip, paper, title: d.title,
      headings: d.querySelectorAll("h2").length, ran: !!w.taken});
  }
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.replaceChildren(out);
};
window.addEventListener("load", look);
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium to look at the page")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_sideways_scrolling_no_console_message_and_a_read_out(tmp_path, dark):
    makers = {"lm": made.language_model, "classes": made.classifier, "targets": lambda f: made.regressor(f, 3), "hostile": made.hostile}
    frames = ""
    for name, maker in makers.items():
        page = render(maker(tmp_path / name)).read_text(encoding="utf-8")
        for width in (390, 1280):
            frames += f'<iframe title="{name}" style="width:{width}px;height:800px;border:0" srcdoc="{html.escape(page)}"></iframe>'
    harness = tmp_path / "harness.html"
    harness.write_text(HARNESS % frames, encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
        "--window-size=1400,900", f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom", harness.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    if match is None:
        pytest.skip(f"Chromium does not run here: {done.stderr[-300:]}")
    found = json.loads(html.unescape(match[1]))
    assert len(found) == 2 * len(makers)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    for page in found:
        assert page["scroll"] <= page["width"], page
        assert page["wide"] == [], page
        assert page["cut"] == [] or page["width"] > 760, page
        assert page["headings"] >= 5
        assert page["title"] != "taken"
        assert page["paper"] == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
        assert page["tip"]["shown"], page
        assert page["tip"]["inside"], page
        assert page["tip"]["text"].startswith("step ")
