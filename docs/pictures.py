"""Makes the pictures of the docs: the demo's report as a browser shows it, a learning curve, the ladder, and how time grows.

    python docs/pictures.py RUN CURVE

RUN is the run directory of `make demo`, CURVE that of `embedfit curve` on the same data. Needs Chromium.
The charts are drawn from benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
PICTURES = DOCS / "pictures"
TEAL, LIGHT, GREY = "#0f766e", "#5eb5ac", "#94a3b8"


def main() -> None:
    """Write every picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="the run directory of the demo")
    parser.add_argument("curve", type=Path, help="the folder of a learning curve")
    folders = parser.parse_args()
    report = folders.run / "report.html"
    PICTURES.mkdir(exist_ok=True)
    screenshot(report, "report.png", top=0, height=860)
    screenshot(report, "queries.png", top=4680, height=760)
    ladder("transactions-names", "Card transactions, 326 queries", "ladder.png")
    before_and_after("before-after.png")
    shutil.copyfile(folders.curve / "curve.png", PICTURES / "curve.png")
    for name in ("scale", "training"):
        shutil.copyfile(RESULTS / f"{name}.png", PICTURES / f"{name}.png")


def screenshot(page: Path, name: str, *, top: int, height: int, width: int = 1200) -> None:
    """Write a part of a page, as Chromium shows it, in 64 colours."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "page.png"
        chromium = shutil.which("chromium") or shutil.which("google-chrome") or "chromium-browser"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{top + height}"]
        subprocess.run([chromium, *flags, f"--screenshot={whole}", page.resolve().as_uri()], check=True, capture_output=True)
        with Image.open(whole) as image:
            part = image.convert("RGB").crop((0, top, width, top + height))
            part.quantize(64, dither=Image.Dither.NONE).save(PICTURES / name, optimize=True)


def ladder(data: str, title: str, name: str) -> None:
    """Write MRR@10 of every method; the recommended one stands out."""
    ladder = json.loads((RESULTS / "ladder.json").read_text())[data]
    rungs = ladder["rungs"][::-1]
    figure = Figure(figsize=(8, 0.34 * len(rungs) + 0.9), layout="constrained", dpi=110)
    axes = figure.subplots()
    colours = [TEAL if rung["key"] == ladder["recommended"] else GREY for rung in rungs]
    bars = axes.barh([rung["name"] for rung in rungs], [rung["mrr@10"] for rung in rungs], color=colours, height=0.7)
    axes.bar_label(bars, fmt="%.2f", padding=4, fontsize=9)
    axes.set_xlim(0, 1)
    axes.set_title(f"{title}: MRR@10 of each method, cheapest first", fontsize=10, loc="left")
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axes.tick_params(length=0, labelbottom=False, labelsize=9)
    figure.savefig(PICTURES / name)


def before_and_after(name: str) -> None:
    """Write recall at each k of the base model, the tuned model alone and the searcher, for two data sets."""
    quality = json.loads((RESULTS / "quality.json").read_text())
    figure = Figure(figsize=(8, 2.9), layout="constrained", dpi=110)
    panels = {"transactions-names": "Card transactions, 27 categories", "banking77-10": "BANKING77, 10 queries per intent"}
    sides = {"base": ("base model", GREY), "tuned": ("tuned alone", LIGHT), "searcher": ("searcher", TEAL)}
    for axes, (data, title) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        for number, (side, (label, colour)) in enumerate(sides.items()):
            values = [quality[data][f"recall@{k}"][side] for k in (1, 3, 5)]
            bars = axes.bar([place + 0.27 * (number - 1) for place in range(3)], values, 0.25, color=colour, label=label)
            axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7.5)
        axes.set_xticks(range(3), [f"recall@{k}" for k in (1, 3, 5)], fontsize=9)
        axes.set_ylim(0, 1.3)
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, labelleft=False)
    figure.axes[0].legend(frameon=False, fontsize=9, loc="upper left", ncols=3)
    figure.savefig(PICTURES / name)


if __name__ == "__main__":
    main()
