"""Pictures of how training went."""

import re

import torch
from comfy_api.latest import io, ui

from ..d3po_core.runs.store import list_runs, load_curves, run_folder, run_version
from ..d3po_core.training.metrics import QUARTER, SHOWN
from .library import runs_root
from .types import CATEGORY, LossMap

AT_HAND = "(this run)"  # no folder can have this name


class D3POPlot(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POPlot",
            display_name="D3PO Plot",
            category=CATEGORY,
            search_aliases=["plot loss", "training chart", "compare runs", "metrics", "loss graph"],
            description=(
                "Draws how training went: a panel for each metric, a colour for each run. It compares the "
                "run at hand with runs that were saved before."
            ),
            inputs=[
                LossMap.Input(
                    "loss_map",
                    optional=True,
                    tooltip="The run at hand, from the train step; loss maps of other trainers work too.",
                ),
                io.String.Input(
                    "runs",
                    default="",
                    multiline=True,
                    tooltip="Names of saved runs (folders in output/d3po/runs) to draw as well, separated "
                    "by commas or lines. Empty: only the loss map.",
                ),
                io.String.Input(
                    "metrics",
                    default=", ".join(SHOWN),
                    multiline=True,
                    tooltip="What to draw, separated by commas: any metric of the runs, as 'held-out "
                    "accuracy', 'gradient norm' or 'margin by noise quarter'. Each gets a panel.",
                ),
                io.Float.Input(
                    "smoothing",
                    default=0.6,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip="How much of the past is averaged into the strong line; the faint one is as "
                    "measured. 0: only as measured. Long runs want 0.9 and more.",
                ),
                io.Int.Input(
                    "width", default=1200, min=320, max=8192, tooltip="Width of the picture in pixels."
                ),
                io.Int.Input(
                    "height", default=800, min=240, max=8192, tooltip="Height of the picture in pixels."
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The picture.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, runs, **_):
        if runs is None:  # it comes over a wire, and the host does not say which runs it names: look at all
            return [run_version(folder) for folder in sorted(runs_root().glob("*"))]
        return [run_version(run_folder(runs_root(), name, "runs")) for name in names_in(runs)]

    @classmethod
    def execute(cls, runs, metrics, smoothing, width, height, loss_map=None):
        curves = {} if loss_map is None else {AT_HAND: curves_of(loss_map)}
        curves |= {name: saved_curves(name) for name in names_in(runs)}
        if not curves:
            raise ValueError(
                "loss_map, runs: there is nothing to draw. Wire the train step's loss_map to this node, "
                f"or name runs that were saved: {saved_names()}"
            )
        picture = draw(curves, metrics_in(metrics), (width, height), smoothing)
        image = torch.from_numpy(picture)[None].float() / 255
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


def draw(*given):
    """As plots.draw, for which matplotlib is loaded here: where it is missing, only plots are."""
    try:
        from ..d3po_core.runs import plots
    except ImportError as error:
        raise ValueError(
            f"Plots need the package matplotlib, which cannot be imported ({error}). Install it into the "
            "Python that runs ComfyUI with: pip install matplotlib"
        ) from error
    return plots.draw(*given)


def names_in(text):
    """The names in a text, separated by commas or lines, each once."""
    return list(dict.fromkeys(filter(None, map(str.strip, re.split(r"[,\n]", text)))))


def metrics_in(text):
    """As `names_in`, where the comma in "margin, noise quarter 1" separates nothing."""
    names = re.split(rf",(?!{QUARTER[1:]}[1-4])|\n", text.replace("_", " "))
    return list(dict.fromkeys(filter(None, map(str.strip, names))))


def curves_of(loss_map):
    """A LOSS_MAP's curves under the names that saved runs have: these have spaces."""
    return {name.replace("_", " "): [float(value) for value in values] for name, values in loss_map.items()}


def saved_curves(name):
    curves = load_curves(run_folder(runs_root(), name, "runs"))
    if curves is None:
        raise ValueError(f"runs: there is no run {name!r} in output/d3po/runs. There are: {saved_names()}")
    return curves


def saved_names():
    return ", ".join(run.name for run in list_runs(runs_root()) if not run.problem) or "none yet"
