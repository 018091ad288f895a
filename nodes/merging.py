"""Datasets of several machines or people as one."""

from comfy_api.latest import io

from ..d3po_core.dataset.index import DatasetError
from ..d3po_core.dataset.merging import merged
from .stored import dataset_folder, version
from .types import CATEGORY

KEPT = "{} is there already and was left as it is. To merge again, choose a new name"


class D3POMergeDatasets(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POMergeDatasets",
            display_name="D3PO Merge Datasets",
            category=CATEGORY,
            search_aliases=["join datasets", "combine datasets", "several machines", "several annotators"],
            description=(
                "Makes one dataset of several, that were recorded on several machines or judged by several "
                "people. Nothing is lost or counted twice, and the others stay as they are."
            ),
            inputs=[
                io.String.Input(
                    "datasets",
                    multiline=True,
                    default="my dataset",
                    tooltip="Names of datasets, one in each line. Copy the folders of other machines into "
                    "output/d3po/datasets first.",
                ),
                io.String.Input(
                    "merged",
                    default="merged dataset",
                    tooltip="Name of the new dataset. One that is there is never written to.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="dataset", tooltip="Its name: wire to a node that loads from it."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, datasets, merged):
        return version(merged)

    @classmethod
    def execute(cls, datasets, merged):
        names = [line.strip() for line in datasets.splitlines() if line.strip()]
        if len(set(names)) < 2:
            raise ValueError("datasets: write the names of two datasets or more, one in each line")
        text = KEPT.format(merged) if version(merged) else made(names, merged)
        return io.NodeOutput(merged, ui={"text": [text]})


def made(names, name):
    """Merge datasets by their names: what there is to say of it."""
    try:
        held = merged([dataset_folder(each) for each in names], dataset_folder(name))
    except DatasetError as error:
        raise type(error)(f"datasets: {error}") from error
    return f"{name}: {held.sets} sets and {held.judgements} judgements of {len(names)} datasets"
