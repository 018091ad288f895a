"""Every node of the host that puts something on a MODEL, before sampler and train step alike.

It is recorded and trained with, or refused in words of ours."""

import pytest

from tests.host.graphs import found, node, probe, recording, stage, trained, unique
from tests.host.support import refused, works
from tools.host import WorkflowError

OURS = ("D3PO", "Test")
# nodes that this model has no use for, and why
ELSEWHERE = {
    "ARVideoI2V": "video",
    "ChromaRadianceOptions": "Chroma Radiance",
    "ContextWindowsManual": "video",
    "FluxKVCache": "Flux, whose attention patches take what no other model's do",
    "HiDreamO1PatchSeamSmoothing": "HiDream",
    "LTXVContextWindows": "video",
    "LTXVReferenceAudio": "video",
    "MiniMaxH3SigmaShift": "a flow model",
    "ModelNoiseScale": "a flow model",
    "ModelSamplingAuraFlow": "a flow model",
    "ModelSamplingFlux": "a flow model",
    "ModelSamplingLTXV": "a flow model",
    "ModelSamplingSD3": "a flow model",
    "TripoSplatSamplingPreview": "3D",
    "WanContextWindowsManual": "video",
    "WanInfiniteTalkToVideo": "video",
    "TorchCompileModel": "takes minutes to compile for sampling; of training there is a test below",
    "MultiGPU_WorkUnits": "wants several GPUs",
    "SelectModelDevice": "chooses a GPU",
    "ModelComputeDtype": "loads the model again",
}
MERGES = ("ModelMergeSimple", "ModelMergeSD1")  # one of each kind: the others are for other families' layers
FILES = ("MODEL_PATCH", "LORA_MODEL", "AUDIO", "IMAGE")  # further models and media
SAMPLING = dict(steps=3, candidates=2, cfg=2.0, seed=5)
# what a node has besides its defaults, where these do nothing to so small a model
STRONG = {
    "PatchModelAddDownscale": dict(block_number=1, end_percent=1.0),
    "HyperTile": dict(tile_size=1, max_depth=2),
    "CFGOverride": dict(cfg=3.0),
    "ModelMergeSimple": dict(ratio=0.5),
}
REFUSED = {
    "RenormCFG": "RenormCFG",
    "TemporalScoreRescaling": "TSR - Temporal Score Rescaling",
    "EasyCache": "EasyCache",
    "LazyCache": "LazyCache",
}
LINKS = {
    "MODEL": "loader",
    "CLIP": "loader",
    "VAE": "loader",
    "CONDITIONING": "negative",
    "LATENT_OPERATION": "operation",
}
SLOTS = {"MODEL": 0, "CLIP": 1, "VAE": 2}


def inputs_of(definition, lora):
    """A node's required inputs at their defaults, and a LoRA's file where it wants one.

    None where it wants what is not here."""
    given = {}
    for name, (kind, *options) in definition["input"].get("required", {}).items():
        options = options[0] if options else {}
        choices = kind if isinstance(kind, list) else options.get("options")
        given[name] = (
            [LINKS[kind], SLOTS.get(kind, 0)]
            if not isinstance(kind, list) and kind in LINKS
            else options["default"]
            if "default" in options
            else choices[0]
            if choices
            else None
        )
    if "lora_name" in given:
        given["lora_name"] = lora
    return None if None in given.values() else given


def patch_nodes(object_info, lora):
    """Name -> inputs of the nodes that can be driven here."""
    found = {}
    for name, definition in sorted(object_info.items()):
        kinds = [spec[0] for spec in definition["input"].get("required", {}).values()]
        merged = name.startswith("ModelMerge") and name not in MERGES
        if (
            "MODEL" in kinds
            and "MODEL" in definition["output"]
            and not name.startswith(OURS)
            and not merged
            and name not in ELSEWHERE
            and not any(kind in FILES for kind in kinds if isinstance(kind, str))
            and (inputs := inputs_of(definition, lora))
        ):
            found[name] = inputs | STRONG.get(name, {})
    return found


def patched(name, inputs, **training):
    """A train step on a recording, both behind that node."""
    graph = trained(training, model=("patch", 0), **SAMPLING)
    graph["patch"] = node(name, **inputs)
    graph["operation"] = node("LatentOperationTonemapReinhard", multiplier=1.0)
    graph["train"]["inputs"]["model"] = ["patch", 0]
    return graph


@pytest.fixture(scope="module")
def lora(host):
    """The name of a LoRA file, with convolutions in it, that the host's loaders take."""
    graph = trained(dict(learning_rate=1e-2, targets="all linear and convolutions"), **SAMPLING)
    graph["file"] = node(
        "D3POSaveLoRA",
        model=["loader", 0],
        lora=["train", 1],
        filename_prefix=f"loras/{unique()}",
        naming="ComfyUI",
    )
    return host.run(graph)["outputs"]["file"]["text"][0].removeprefix("loras/")


@pytest.fixture(scope="module")
def outcomes(host, lora):
    """Name -> losses of a train step behind that node, or the error."""
    found_by = {}
    for name, inputs in patch_nodes(host.object_info(), lora).items():
        try:
            entry = host.run(patched(name, inputs))
            found_by[name] = found(entry, "losses") | {"warnings": entry["outputs"]["train"]["warnings"]}
        except WorkflowError as error:
            found_by[name] = error
    return found_by


def test_nodes_of_the_host_are_found(outcomes):
    assert len(outcomes) > 30 and {
        "CFGZeroStar",
        "RescaleCFG",
        "NAGuidance",
        "TomePatchModel",
        "LoraLoader",
        "LoraLoaderBypass",
        *REFUSED,
    } <= set(outcomes)


@works(
    "model patches and LoRA loaders: every node of ComfyUI that patches this kind of model, but those below"
)
def test_a_model_with_a_patch_is_its_own_reference(outcomes):
    for name, losses in outcomes.items():
        if not isinstance(losses, WorkflowError):
            told = {
                key: losses[key]
                for key in ("winner_log-ratio", "loser_log-ratio", "KL_to_reference", "warnings")
            }
            assert told == {
                "winner_log-ratio": [0.0],
                "loser_log-ratio": [0.0],
                "KL_to_reference": [0.0],
                "warnings": [],
            }, name
            assert 0 < losses["gradient_norm"][0] < float("inf"), name


@refused("model patches: " + ", ".join(f"*{name}*" for name in REFUSED.values()), "take the node out")
def test_what_cannot_be_trained_is_refused_by_name(outcomes):
    refused = {name: error for name, error in outcomes.items() if isinstance(error, WorkflowError)}
    assert set(refused) == set(REFUSED), {name: str(error) for name, error in refused.items()}
    for name, error in refused.items():
        assert error.node_type == "D3POKSampler" and error.message.startswith("model: ")
        assert REFUSED[name] in error.message and "Take that node out" in error.message
        assert "Tensor" not in error.message


@works("patches with a model of their own")
def test_a_patch_with_a_model_of_its_own_is_trained_through(host):
    losses = found(host.run(patched("TestPatchWithModel", dict(model=["loader", 0]))), "losses")
    assert losses["winner_log-ratio"] == losses["KL_to_reference"] == [0.0] and losses["gradient_norm"][0] > 0


@refused("*Adaptive Projected Guidance* with momentum", "set its momentum to 0")
def test_what_remembers_earlier_steps_is_refused(failure):
    graph = patched("APG", dict(model=["loader", 0], eta=1.0, norm_threshold=5.0, momentum=0.5))
    error = failure(graph)
    assert error.node_type == "D3POTrainStep"
    assert error.message.startswith("model: ") and "momentum" in error.message


@works("several LoRAs below the one that is trained")
def test_a_lora_is_trained_on_top_of_others(host, lora):
    graph = patched("LoraLoaderModelOnly", dict(model=["loader", 0], lora_name=lora, strength_model=0.7))
    graph["second"] = node("TestLora", model=["patch", 0], strength=0.05)
    for each in ("sampler", "train"):
        graph[each]["inputs"]["model"] = ["second", 0]
    entry = host.run(graph)
    assert all_zero(found(entry, "losses")) and entry["outputs"]["train"]["warnings"] == []
    graph["train"]["inputs"]["model"] = ["patch", 0]
    assert found(host.run(graph), "losses")["KL_to_reference"] == [0.0], (
        "the train step's model is the reference"
    )


# --- other patches before the sampler than before the train step ---

CFG_ZERO = ("CFGZeroStar", {})
LATE = (
    "PatchModelAddDownscale",
    dict(  # acts from the second step on
        block_number=1,
        downscale_factor=2.0,
        start_percent=0.5,
        end_percent=1.0,
        downscale_after_skip=True,
        downscale_method="bicubic",
        upscale_method="bicubic",
    ),
)
DRAWING = ("TomePatchModel", dict(ratio=0.3))


def apart(patch, where, **training):
    """A train step without learning, with a patch before the sampler, the train step or both."""
    name, inputs = patch
    graph = trained(
        dict(learning_rate=0.0, weighting="paper", beta=0.1, clip=0.1) | training, **SAMPLING | dict(steps=4)
    )
    graph["patch"] = node(name, model=["loader", 0], **inputs)
    for each in where:
        graph[each]["inputs"]["model"] = ["patch", 0]
    return graph


def all_zero(losses):
    return all(losses[name] == [0.0] for name in ("winner_log-ratio", "loser_log-ratio", "KL_to_reference"))


@pytest.mark.parametrize("where", ["sampler", "train"])
@pytest.mark.parametrize("patch", [CFG_ZERO, LATE, DRAWING], ids=lambda patch: patch[0])
def test_a_patch_on_one_side_alone_is_told_and_the_reference_is_the_train_steps_model(host, patch, where):
    entry = host.run(apart(patch, [where]))
    assert all_zero(found(entry, "losses"))
    (warning,) = entry["outputs"]["train"]["warnings"]
    for part in (
        "1 of 1 sets was sampled with other patches",
        "same patch nodes",
        "sampler and the train step",
    ):
        assert part in warning
    assert entry["outputs"]["train"]["text"][0].count(f"Warning: {warning}") == 1


@pytest.mark.parametrize("patch", [CFG_ZERO, LATE, DRAWING], ids=lambda patch: patch[0])
def test_the_same_patched_model_on_both_sides_gives_its_recorded_x0(host, patch):
    """A recording whose x0 was changed where the trainer does not look shows in the KL."""
    graph = apart(patch, ["sampler", "train"])
    entry = host.run(graph)
    assert all_zero(found(entry, "losses")) and entry["outputs"]["train"]["warnings"] == []
    graph["spoil"] = node("TestSpoilTrajectory", trajectory=["sampler", 0], how="denoised")
    graph["judge"]["inputs"]["trajectory"] = ["spoil", 0]
    assert found(host.run(graph), "losses")["KL_to_reference"][0] > 0


def with_loras(graph, strength=0.05):
    """The graph with a LoRA on the model that samples."""
    graph["lora"] = node("TestLora", model=graph["sampler"]["inputs"]["model"], strength=strength)
    graph["sampler"]["inputs"]["model"] = ["lora", 0]
    return graph


def test_under_a_lora_the_same_patches_are_known_as_the_same(host):
    def warnings(where):
        return host.run(with_loras(apart(CFG_ZERO, where)))["outputs"]["train"]["warnings"]

    assert warnings(["sampler", "train"]) == []
    (warning,) = warnings(["sampler"])
    assert "sampled with other patches" in warning


def test_two_nodes_of_the_same_settings_are_the_same_patches(host):
    graph = with_loras(apart(LATE, ["sampler"]))
    graph["other"] = node(LATE[0], model=["loader", 0], **LATE[1])
    graph["train"]["inputs"]["model"] = ["other", 0]
    assert host.run(graph)["outputs"]["train"]["warnings"] == []
    graph["other"]["inputs"]["downscale_factor"] = 1.5
    assert len(host.run(graph)["outputs"]["train"]["warnings"]) == 1


def test_a_model_without_anything_on_it_is_the_base_model(host):
    graph = recording(seed=5) | {"look": probe("Trajectory", "sampler")}
    assert found(host.run(graph), "look")["policy"] == "base"


def test_what_ddpo_takes_for_the_policy_that_sampled_is_this_models(host):
    """Where other patches sampled, the ratio to the policy that sampled begins at 1 all the same."""
    for where in (["sampler"], ["train"], ["sampler", "train"]):
        losses = found(
            host.run(with_loras(apart(CFG_ZERO, where, method="DDPO", **{"ratio_clip": 1e-4}))),
            "losses",
        )
        if where != ["sampler", "train"]:
            assert losses["clip_fraction"] == [0.0], where


# --- names of what is on a model ---


def test_policies_are_named_by_what_acts(host):
    graph = stage() | {"names": probe("Policies", "loader")}
    assert found(host.run(graph), "names") == {
        "plain": "base",
        "clone": True,
        "lora keeps patches": True,
        "weights differ": True,
        "another function": True,
        "same kinds": True,
        "tensor by content": True,
        "value by content": True,
        "reused id": True,
        "empty wrappers": "base",
        "model sampling by content": True,
    }


def test_training_mode_and_memory_are_as_they_were(host):
    graph = stage() | {"names": probe("Training", "loader")}
    assert found(host.run(graph), "names") == {
        "in training": [False, True],
        "largest": [[4, 4, 8, 8], [2, 4, 16, 16], [1, 4, 16, 16]],
    }


# --- base models ---


def test_quantised_weights_count_by_what_they_keep(host):
    graph = stage() | {"names": probe("Fingerprints", "loader")}
    assert found(host.run(graph), "names") == {
        "plain": True,
        "quantised differ": True,
        "quantised again": True,
        "scale differs": True,
        "raw differ": True,
        "raw again": True,
    }


@works("Torch Compile Model", "works; training goes without it")
def test_training_goes_without_what_would_compile_for_minutes(host):
    graph = trained(dict(epochs=2), **SAMPLING)
    usual = found(host.run(graph), "losses")
    graph["compiled"] = node("TorchCompileModel", model=["loader", 0], backend="inductor")
    graph["train"]["inputs"]["model"] = ["compiled", 0]
    graph |= {"losses": probe("LossMap", "train", 2)}
    assert found(host.run(graph), "losses") == usual
