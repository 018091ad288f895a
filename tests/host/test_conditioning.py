"""What conditioning carries besides text, in recording and training.

ControlNets, areas, masks, ranges of steps, hooks."""

import pytest

from tests.host.graphs import found, node, probe, sized, trained
from tests.host.support import refused, works

ZERO = {"winner_log-ratio": [0.0], "loser_log-ratio": [0.0], "KL_to_reference": [0.0]}
SAMPLING = dict(steps=3, candidates=2, cfg=2.0, seed=5)


def controlled(strength=1.0, **training):
    graph = trained(training, **SAMPLING, positive=["control", 0], negative=["control", 1])
    return graph | {
        "net": node("TestControlNet", model=["loader", 0], seed=0),
        "hint": node("EmptyImage", width=32, height=32, batch_size=1, color=0x804020),
        "control": node("ControlNetApplyAdvanced", positive=["positive", 0], negative=["negative", 0],
                        control_net=["net", 0], image=["hint", 0], strength=strength, start_percent=0.0,
                        end_percent=1.0),
        "look": probe("Trajectory", "sampler")}  # fmt: skip


@works("ControlNets, several in a chain as well")
@pytest.mark.parametrize("training", [{}, {"candidates_per_pass": 1}, {"method": "Diffusion-DPO"}], ids=str)
def test_candidates_under_a_controlnet_are_trained_on(host, training):
    graph = controlled(**training) | {"weights": probe("Control", "net")}
    entry = host.run(graph)
    losses, before = found(entry, "losses"), found(entry, "weights")
    # one by one, a processor may round otherwise than both together, as they were recorded
    zero = pytest.approx(0.0, abs=1e-5) if "candidates_per_pass" in training else 0.0
    assert all(losses[name] == [zero] for name in ZERO) and losses["gradient_norm"][0] > 0
    assert found(host.run(graph | {"weights": probe("Control", "net")}), "weights") == before
    assert found(host.run(controlled(strength=0.0)), "look")["sha"] != found(entry, "look")["sha"], "it acts"
    assert entry["outputs"]["train"]["warnings"] == []


def test_a_controlnet_on_the_prompt_alone_and_a_chain_of_two_are_trained_on(host):
    graph = controlled()
    graph["control"] = node(
        "ControlNetApply",
        conditioning=["positive", 0],
        control_net=["net", 0],
        image=["hint", 0],
        strength=0.5,
    )
    graph["chained"] = node(
        "ControlNetApply",
        conditioning=["control", 0],
        control_net=["net", 0],
        image=["hint", 0],
        strength=0.25,
    )
    graph["sampler"]["inputs"] |= dict(positive=["chained", 0], negative=["negative", 0])
    losses = found(host.run(graph), "losses")
    assert {name: losses[name] for name in ZERO} == ZERO and losses["gradient_norm"][0] > 0


# name -> the node that makes the prompt out of others
CONDITIONING = {
    "ConditioningSetArea": dict(conditioning=["positive", 0], width=64, height=64, x=32, y=0, strength=0.8),
    "ConditioningSetAreaPercentage": dict(
        conditioning=["positive", 0], width=0.5, height=1.0, x=0.5, y=0.0, strength=1.0
    ),
    "ConditioningSetAreaStrength": dict(conditioning=["positive", 0], strength=0.5),
    "ConditioningSetMask": dict(
        conditioning=["positive", 0], mask=["mask", 0], strength=1.0, set_cond_area="default"
    ),
    "ConditioningSetTimestepRange": dict(conditioning=["positive", 0], start=0.0, end=0.6),
    "ConditioningCombine": dict(conditioning_1=["positive", 0], conditioning_2=["other", 0]),
    "ConditioningConcat": dict(conditioning_to=["positive", 0], conditioning_from=["other", 0]),
    "ConditioningAverage": dict(
        conditioning_to=["positive", 0], conditioning_from=["other", 0], conditioning_to_strength=0.4
    ),
    "ConditioningZeroOut": dict(conditioning=["positive", 0]),
}


@works("regions, ranges of steps, mixtures of prompts: " + ", ".join(f"*{name}*" for name in CONDITIONING))
@pytest.mark.parametrize("name", CONDITIONING)
def test_conditioning_of_every_kind_is_trained_on(host, name):
    graph = trained(**SAMPLING, positive=["made", 0])
    graph["other"] = node("CLIPTextEncode", clip=["skip", 0], text="a dog on a blue background")
    if name == "ConditioningSetArea":
        sized(graph, 64)  # the least that it takes
    graph["skip"] = node("CLIPSetLastLayer", clip=["loader", 1], stop_at_clip_layer=-2)
    graph["mask"] = node("SolidMask", value=0.7, width=32, height=32)
    graph["made"] = node(name, **CONDITIONING[name])
    if name.startswith(("ConditioningSetArea", "ConditioningSetMask", "ConditioningSetTimestep")):
        graph["rest"] = node("ConditioningCombine", conditioning_1=["made", 0], conditioning_2=["other", 0])
        graph["sampler"]["inputs"]["positive"] = ["rest", 0]
    losses = found(host.run(graph), "losses")
    assert {name: losses[name] for name in ZERO} == ZERO and losses["gradient_norm"][0] > 0


@pytest.mark.parametrize("name", ["ConditioningCombine", "ConditioningSetAreaPercentage"])
def test_pictures_of_a_prompt_in_regions_are_held_on_the_leash(host, name):
    graph = trained(**SAMPLING, positive=["rest", 0])
    graph["other"] = node("CLIPTextEncode", clip=["loader", 1], text="a dog on a blue background")
    graph["made"] = node(name, **CONDITIONING[name])
    graph["rest"] = node("ConditioningCombine", conditioning_1=["made", 0], conditioning_2=["other", 0])
    graph["train"] = node(
        "D3POTrainStep", model=["loader", 0], preferences=["judge", 0], method="Diffusion-DPO",
        strength="recommended", epochs=1, rank=2, targets="attention")  # fmt: skip
    (figures,) = host.run(graph)["outputs"]["train"]["figures"]
    assert figures["pictures moved"] >= 0


@refused("hooks in the conditioning (*Create Hook LoRA*)", "put a LoRA on the model with *Load LoRA*")
def test_hooks_that_change_weights_within_a_step_are_refused(failure, lora):
    graph = trained(**SAMPLING, positive=["hooked", 0])
    graph["hook"] = node("CreateHookLora", lora_name=lora, strength_model=1.0, strength_clip=0.0)
    graph["hooked"] = node(
        "ConditioningSetProperties",
        cond_NEW=["positive", 0],
        strength=1.0,
        set_cond_area="default",
        hooks=["hook", 0],
    )
    error = failure(graph)
    assert error.node_type == "D3POKSampler"
    for part in ("positive: ", "hooks", "Load LoRA"):
        assert part in error.message


@pytest.fixture(scope="module")
def lora(host, base):
    """A LoRA file in the host's list."""
    graph = trained(dict(learning_rate=1e-2), **SAMPLING)
    graph["save"] = node(
        "D3POSaveLoRA",
        model=["loader", 0],
        lora=["train", 1],
        filename_prefix="loras/hooked",
        naming="ComfyUI",
    )
    del graph["losses"]
    host.run(graph)
    (file,) = base.glob("output/loras/hooked_*.safetensors")
    yield file.name
    file.unlink()
