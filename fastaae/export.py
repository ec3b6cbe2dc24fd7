"""A Model as a graph that runs without fastaae, ONNX or torch.export's, and as a folder for the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import replaced
from .files import brief, expanded
from .kernels.exact import exact_arithmetic

FILE = "model.safetensors"
CARD = "---\n{{ card_data }}\n---\n\n`fastaae.Model.from_pretrained(FOLDER)`\n\n```\n{{ model }}\n```\n"


class Graph(nn.ModuleDict):
    """A "decoder" and maybe an "encoder": outputs by name."""

    def forward(self, given: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """Of x [N, *shape] or, without an encoder, z [N, style_dim]; y [N, n_classes] where it takes labels."""
        codes, dtype = {}, given.dtype
        if "encoder" in self:
            made = self["encoder"](given)
            codes = dict(zip("zy", made if isinstance(made, tuple) else (made,), strict=False))
            given, y = codes["z"], codes.get("y", y) if self["decoder"].heads is None else None
        return {**codes, "reconstruction" if codes else "x": self["decoder"](given, y).to(dtype)}


@exact_arithmetic(inference=False)
def export(model: Any, path: str | Path, decoder: bool) -> Path:
    """See Model.export."""
    if (path := expanded(path)).suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{path}: expected a name that ends with .onnx or .pt2")
    whole = model.encoder is not None and not decoder
    graph = Graph({"decoder": model.decoder_module()} | ({"encoder": model.encoder_module()} if whole else {}))
    graph = copy.deepcopy(graph).cpu().requires_grad_(False)  # a view would be saved with all that it is of
    d, k = model.config.style_dim, model.n_classes
    drawn = model.decoder.weights[0].new_empty(17, d + k, device="cpu")
    drawn.normal_(0, model.config.prior_std, generator=torch.Generator("cpu").manual_seed(0))
    labels = {"y": drawn[:, d:].softmax(1)} if k and model.heads is None else {}
    inputs = {"z": drawn[:, :d], **labels}
    if whole:
        x = graph["decoder"](*inputs.values()).to(drawn.dtype)
        inputs = {"x": x, **({} if model.label_head else labels)}
    about = json.dumps({"classes": model.classes, "columns": model.known.get("columns")})
    with warnings.catch_warnings(), torch.device("cpu"), replaced(path) as new:
        warnings.simplefilter("ignore")  # of torch, about its own code
        batch = {0: torch.export.Dim("batch", min=1)}
        program = torch.export.export(graph, (*inputs.values(),), dynamic_shapes=(batch,) * len(inputs))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it names folders of this machine
        if path.suffix == ".pt2":
            with open(new, "xb") as file:
                torch.export.save(program, file, extra_files={"fastaae": about})
            run = torch.export.load(new).module()
        else:
            run = _write_onnx(program, new, about, [*inputs], [*graph(*inputs.values())])
        for some in ([t[:n] for t in inputs.values()] for n in (1, 17)):
            found = run(*some)
            for name, right in graph(*some).items():
                off = ((found[name] - right).abs().max() / right.abs().max().clamp(1)).item()
                if not off <= 1e-5:
                    raise RuntimeError(f"{path}: {name} is off by {off:.1e} of the largest, expected at most 1e-5")
    return path


def _write_onnx(program: Any, path: Path, about: str, inputs: list[str], outputs: list[str]) -> Any:
    """Returns: a function that runs what is in the file, as the module of a program of torch.export."""
    import onnxruntime
    import onnxscript  # noqa: F401  # which torch needs

    logger = logging.getLogger("torch.onnx")
    options: dict[str, Any] = {"input_names": inputs, "output_names": outputs, "verbose": False}
    with contextlib.ExitStack() as after:
        after.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)  # or it tells what else is not installed
        made: Any = torch.onnx.export(program, dynamic_shapes=({0: "batch"},) * len(inputs), **options)
    made.model.metadata_props["fastaae"] = about
    path.write_bytes(made.model_proto.SerializeToString())  # save() puts large weights elsewhere
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*given: Tensor) -> dict[str, Tensor]:
        found = session.run(outputs, {name: t.numpy() for name, t in zip(inputs, given, strict=True)})
        return {name: torch.from_numpy(array) for name, array in zip(outputs, found, strict=True)}

    return run


def save_pretrained(model: Any, folder: str | Path, **options: Any) -> None:
    """See Model.save_pretrained."""
    from huggingface_hub import ModelHubMixin

    class Shared(ModelHubMixin, library_name="fastaae", model_card_template=CARD):
        def _save_pretrained(self, save_directory: Path) -> None:
            shared.save(save_directory / FILE)

    if os.path.lexists(config := expanded(folder) / "config.json"):
        raise ValueError(f"{config}: a run's, or another program's, which would be removed: name another folder")
    shared, dataset = copy.copy(model), Path(model.config.dataset).name or "arrays"
    shared.config = dataclasses.replace(model.config, dataset=dataset, data_dir=None, out_dir=None)
    Shared().save_pretrained(config.parent, **{"model_card_kwargs": {"model": model}, **options})


def find_pretrained(source: str | Path, revision: str | None, **options: Any) -> Path:
    """The file that Model.from_pretrained loads. The mixin's own would read what else is in a folder."""
    folder = os.path.isdir(path := expanded(source))
    if folder and revision is None:
        return path / FILE
    if folder or not re.fullmatch("[0-9a-f]{40}", str(revision)):
        expected = "None, of a folder" if folder else "the hash of a commit, 40 digits, of a repository"
        found = "" if folder else ", which is no folder here"
        raise ValueError(f"revision={brief(revision)} of {source}{found}: expected {expected}")
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(str(source), FILE, revision=revision, **options))
