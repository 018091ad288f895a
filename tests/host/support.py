"""What is supported, in the lists that the tests are run over, and the tables in the README made of them.

A test that shows that something works, or what is said where it is refused, carries `works` or `refused`: the
row of the table goes where the test goes."""

import importlib

import pytest

EPSILON = ("euler_ancestral", "ddpm", "lcm", "euler_ancestral_cfg_pp")
FLOW = ("euler_ancestral", "lcm", "euler_ancestral_cfg_pp", "flow_sde", "flow_cps")
# what a model predicts -> the samplers that record it
SAMPLERS = {"epsilon": EPSILON, "v": EPSILON, "flow": FLOW}
# family -> what its model predicts
FAMILIES = {
    "SD1.5": "epsilon", "SD2": "v", "SDXL": "epsilon", "SD3": "flow", "Flux": "flow", "Flux.2": "flow",
    "Chroma": "flow", "Lumina 2": "flow", "Z-Image": "flow", "Qwen-Image": "flow", "HunyuanVideo": "flow",
    "Wan": "flow"}  # fmt: skip
# the modules with such tests, in the order of the table's rows
TESTS = (
    "conditioning", "masks", "model_patches", "families", "sampler_custom", "flow_recording", "samplers",
    "errors_sampling")  # fmt: skip


def works(what, how="works"):
    """Marks the test of something that is recorded and trained on. how: what there is to say of it."""
    return pytest.mark.works(what, how)


def refused(what, instead):
    """Marks the test of the message where something is refused. instead: what to do."""
    return pytest.mark.refused(what, f"refused: {instead}")


def families_table():
    yield "| models | predict | recorded with | D3PO | Diffusion-DPO | LoRA |"
    yield "|---|---|---|---|---|---|"
    for family, predicts in FAMILIES.items():
        samplers = ", ".join(SAMPLERS[predicts])
        yield f"| {family} | {predicts} | {samplers} | yes | yes | whole |"


def parts_table():
    yield "| in the graph | recording and D3PO |"
    yield "|---|---|"
    marks = [mark for name in TESTS for mark in _marks(importlib.import_module(f"tests.host.test_{name}"))]
    for kind in ("works", "refused"):
        for mark in marks:
            if mark.name == kind:
                yield f"| {mark.args[0]} | {mark.args[1]} |"


def _marks(module):
    for value in vars(module).values():
        if getattr(value, "__module__", None) == module.__name__:
            yield from getattr(value, "pytestmark", ())


def tables():
    """name -> text, as they stand in the README between comments of that name."""
    return {"families": "\n".join(families_table()), "parts": "\n".join(parts_table())}
