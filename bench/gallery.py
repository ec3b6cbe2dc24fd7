"""The pictures of README and docs/: trained, drawn and told of by `python bench/reproduce.py --figures`.

Each is made by figures.draw from the first model of a run: of the one that the tables are made from where there is one,
else for as many epochs as two cores have the time for. bench/results/pictures.json keeps what each is of; captions on
the pages are made from it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import tables

import fastaae
from fastaae import data, figures
from fastaae.directory import RunDirectory

ROOT = Path(__file__).resolve().parent.parent
PICTURES, LIST = ROOT / "docs" / "pictures", ROOT / "bench" / "results" / "pictures.json"
GALLERY = {  # by section of docs/experiments.md: epochs and models of a preset, and what is shown of the first one
    "likelihood": {"mnist-likelihood-short": (50, 2, ["neighbours"])},
    "semi-supervised": {"mnist-1000-short": (100, 2, ["style_content", "curves"])},
    "clusters": {"mnist-clusters-30-adam": (46, 4, ["cluster_heads"])},
    "embeddings": {"mnist-embedding-2d-1000-short": (30, 2, ["representations"])},
    "shapes": {
        "mnist-2d-mixture": (15, 1, ["codes", "manifold"]),
        "mnist-2d-labels": (15, 1, ["codes"]),
        "mnist-2d-swiss-roll": (12, 1, ["codes", "manifold"]),
    },
    "style": {"mnist-style": (15, 1, ["style_content"])},
}
SAMPLED = "mnist-likelihood-short"  # whose samples begin the picture on top, before two of these
HERO = {
    "decoded from codes along a spiral": "mnist-2d-swiss-roll-manifold",
    "codes of test images": "mnist-2d-labels-codes",
}


def pictures(run: fastaae.Run, folder: Path, wanted: list[str]) -> dict[str, str]:
    """Draw a run into a folder, and keep of that what is wanted. Returns: what each shows, by its file's name."""
    cfg, found = run.config, {}
    images = data.load(cfg.dataset, cfg.data_dir, cfg.n_validation)
    with tempfile.TemporaryDirectory() as drawn:
        for path, shows in figures.draw(run.model, images, drawn, history=run.history).items():
            if path.stem in wanted:
                found[f"{cfg.name}-{path.stem}.png"] = shows
                shrink(path, folder / f"{cfg.name}-{path.stem}.png")
    return found


def shrink(path: Path, into: Path) -> None:
    """Copy a picture in 256 colours: a third of the bytes."""
    from PIL import Image

    with Image.open(path) as image:
        image.convert("RGB").quantize(256).save(into, optimize=True)


def hero(parts: dict[str, Path], path: Path) -> None:
    """Pictures side by side, of one height, by the line of text below each."""
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    images = [*map(imread, parts.values())]
    widths = [image.shape[1] / image.shape[0] for image in images]
    figure = Figure(figsize=(3.2 * sum(widths), 3.5), dpi=160, layout="constrained")
    panels = figure.subplots(1, len(parts), width_ratios=widths)
    for axes, image, text in zip(panels, images, parts, strict=True):
        axes.imshow(image)
        axes.set_xlabel(text, fontsize=14)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    figure.savefig(path)


def draw(train: Callable[[fastaae.Config], fastaae.Run | None], fields: dict[str, object], chosen: list[str]) -> bool:
    """Draw the pictures of the chosen presets, of all if there are none, from runs that are there or are trained for
    it; with SAMPLED the one on top. The others stay. Returns whether there was time for it."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    before = json.loads(LIST.read_text(encoding="utf-8")) if LIST.exists() else []
    rows, runs = [], {}
    for section, presets in GALLERY.items():
        for name, (epochs, models, wanted) in presets.items():
            if chosen and name not in chosen:
                rows += [row for row in before if row["preset"] == name]
                continue
            cfg = fastaae.preset(name, **{**fields, "epochs": epochs, "replicas": models})
            if (run := train(cfg)) is None:
                return False
            runs[name] = run
            commit = tables.commit(RunDirectory(run.directory).recorded().get("git"))
            about = {"preset": name, "seed": cfg.seed, "epochs": epochs, "precision": cfg.precision, "commit": commit}
            found = pictures(run, PICTURES, wanted)
            rows += [{"section": section, "file": file, "shows": shows, **about} for file, shows in found.items()]
    if SAMPLED in runs:
        with tempfile.TemporaryDirectory() as folder:
            samples = Path(folder, "samples.png")
            figures.grid(runs[SAMPLED].model.sample(100, seed=0), samples)
            others = {text: PICTURES / f"{name}.png" for text, name in HERO.items()}
            hero({"new digits, from a model": samples, **others}, PICTURES / "hero.png")
    LIST.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return True


def made() -> dict[str, str]:
    """What pages show of each section, by the names in their marks."""
    rows, found = json.loads(LIST.read_text(encoding="utf-8")) if LIST.exists() else [], {}
    for row in rows:
        whole = fastaae.preset(row["preset"]).epochs
        how = f"seed {row['seed']}, {row['epochs']} of {whole:,} epochs, {row['precision']}, commit {row['commit']}"
        text = f"![{row['shows']}](pictures/{row['file']})\n\n*`{row['preset']}`, {how}: {row['shows']}.*"
        found.setdefault(f"pictures-{row['section']}", []).append(text)
    return {name: "\n" + "\n\n".join(texts) + "\n" for name, texts in found.items()}
