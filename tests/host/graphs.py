"""Small API prompts for the tests, and what reads their answers. Node ids are plain words."""

import asyncio
import copy
import itertools
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import aiohttp
from safetensors.torch import load_file

from d3po_core.runs.files import content_name
from tools import workflow

CHECKPOINT = "d3po-emoji.safetensors"
TEXT = "a cat on a red background"
TRAINING = dict(
    epochs=1, sets_per_update=1, learning_rate=1e-3, beta=200.0, clip=0.0, weighting="standardised",
    reference="base", guidance="as recorded", step_fraction=1.0, rank=2, alpha=2.0, targets="attention",
    weight_decay=1e-4, max_grad_norm=1.0, candidates_per_pass=0, seed=0)  # fmt: skip

_numbers = itertools.count()


def unique(name="run"):
    """A run name that no other test has."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def says(error, node_type, *parts):
    """Hold a failure against the node and the words that it should have."""
    assert error.node_type == node_type
    for part in parts:
        assert part in error.message, error.message


def probe(kind, source, slot=0):
    """A probe node; never from the cache."""
    return node(f"TestProbe{kind}", value=[source, slot], nonce=str(next(_numbers)))


def loader():
    """MODEL, CLIP and VAE: the emoji model in little, unless a test asks for `emoji_model`."""
    return node("TestSmallModel")


def emoji():
    """The emoji model's, for what asks what is learned, or how far rounding may go."""
    return node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)


def stage():
    """A model with an empty negative prompt and a 32x32 latent: what is cached from test to test.

    The emoji model draws 64x64; these take a quarter of the arithmetic."""
    return {
        "loader": loader(),
        "negative": node("CLIPTextEncode", clip=["loader", 1], text=""),
        "empty": node("EmptyLatentImage", width=32, height=32, batch_size=1),
    }


def sized(graph, width, height=None):
    """The graph, whose images are of another size than stage's; square where no height is given."""
    graph["empty"]["inputs"] |= dict(width=width, height=height or width)
    return graph


def recording(model=("loader", 0), **sampling):
    """A recording of one prompt's candidates. `sampling` changes the sampler's inputs."""
    return stage() | {
        "positive": node("CLIPTextEncode", clip=["loader", 1], text=TEXT),
        "sampler": node("D3POKSampler", **(dict(
            model=list(model), seed=1, steps=3, cfg=2.0, sampler_name="euler_ancestral", scheduler="normal",
            positive=["positive", 0], negative=["negative", 0], latent_image=["empty", 0], denoise=1.0,
            candidates=2, eta=1.0) | sampling)),
    }  # fmt: skip


def judged(trajectory=("sampler", 0), objective="brightness (brighter)", **sampling):
    """A recording that an objective judges."""
    return recording(**sampling) | {
        "decode": node("VAEDecode", samples=["sampler", 1], vae=["loader", 2]),
        "judge": node("D3POObjectivePreference", trajectory=list(trajectory), images=["decode", 0],
                      objective=objective, second_objective="none", target_colour="#ff8800",
                      least_difference=0.0),
    }  # fmt: skip


def picked(picks="", **sampling):
    """A recording that a person judges."""
    graph = judged(**sampling)
    graph["judge"] = node("D3POPairPreference", trajectory=["sampler", 0], images=["decode", 0], picks=picks)
    return graph


def choosing(picks="", candidates=4, sets=1, seed=None, **picker):
    """Candidates without a model, a person's judge and a look at the preferences. New ones without a seed."""
    return {
        "candidates": node("TestCandidates", seed=next(_numbers) + 10 ** 6 if seed is None else seed,
                           candidates=candidates, sets=sets, size=64),
        "judge": node("D3POPairPreference", trajectory=["candidates", 0], images=["candidates", 1],
                      picks=picks, **picker),
        "look": probe("Preferences", "judge"),
    }  # fmt: skip


def keeping(dataset):
    """A node that puts the candidates of `choosing` into a dataset."""
    return node("D3POSaveToDataset", trajectory=["candidates", 0], images=["candidates", 1], dataset=dataset,
                annotator="me")  # fmt: skip


def train_nodes(name="train", model=("loader", 0), preferences=("judge", 0), **training):
    """A train step and the node of its settings, by their names."""
    wires = dict(model=list(model), preferences=list(preferences))
    wires |= {key: training.pop(key) for key in ("lora", "held_out", "vae") if key in training}
    return workflow.train_nodes(name, wires, TRAINING | training)


def trained(training=None, **judging):
    """A judged recording and one train step whose LoRA goes nowhere: its loss map is probed."""
    graph = judged(**judging) | train_nodes(**(training or {}))
    return graph | {"losses": probe("LossMap", "train", 2)}


def loop(run, training=None, prompts=None, **judging):
    """The whole loop on a named run; `prompts` draws them from a list."""
    graph = judged(model=("run", 0), **judging)
    graph |= {
        "run": node("D3POLoadRun", model=["loader", 0], run=run),
        **train_nodes(lora=["run", 1], **(training or {})),
        "save": node("D3POSaveRun", lora=["train", 1], run=run),
    }
    return with_prompts(graph, prompts) if prompts else graph


def with_prompts(graph, prompts, seed=1):
    """Draw the recording's prompts and seeds from a list, all of them."""
    graph = copy.deepcopy(graph)
    graph["prompts"] = node("D3POPrompts", prompts="\n".join(prompts), count=len(prompts), seed=seed)
    graph["positive"]["inputs"]["text"] = ["prompts", 0]
    graph["sampler"]["inputs"]["seed"] = ["prompts", 1]
    return graph


def stock_image(model=("loader", 0), name="stock", seed=5):
    """Nodes that sample a MODEL with the stock KSampler and show the latent's bits and the picture."""
    return {
        f"{name}_text": node("CLIPTextEncode", clip=["loader", 1], text=TEXT),
        f"{name}_sample": node(
            "KSampler", model=list(model), seed=seed, steps=3, cfg=2.0, sampler_name="euler_ancestral",
            scheduler="normal", positive=[f"{name}_text", 0], negative=["negative", 0],
            latent_image=["empty", 0], denoise=1.0),
        f"{name}_latent": probe("Latent", f"{name}_sample"),
        f"{name}_decode": node("VAEDecode", samples=[f"{name}_sample", 0], vae=["loader", 2]),
        f"{name}_image": node("PreviewImage", images=[f"{name}_decode", 0]),
    }  # fmt: skip


def found(entry, probe_id):
    """What a probe saw, one value for each item of a list."""
    values = [json.loads(text) for text in entry["outputs"][probe_id]["text"]]
    return values[0] if len(values) == 1 else values


def messages(entry, event):
    return [data for kind, data in entry["status"]["messages"] if kind == event]


def cached_nodes(entry):
    return {node for data in messages(entry, "execution_cached") for node in data["nodes"]}


def until(look, timeout=30):
    """What `look` returns once it is something."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if seen := look():
            return seen
        time.sleep(0.02)
    raise TimeoutError(f"not seen within {timeout} s")


def live(host):
    """What waits for picks now, by prompt id."""
    return {told["prompt_id"]: told for told in host.get("/d3po/pending") if told["waiting"]}


def page(workflow="a-workflow"):
    """What ComfyUI's page sends along with a prompt, as far as it matters."""
    return {"extra_pnginfo": {"workflow": {"id": workflow, "nodes": []}}}


def begin(host, graph, **extra_data):
    """Queue a prompt as a page that is closed at once. Wait until its picker waits: what is told of it."""
    prompt_id = host.queue(graph, uuid.uuid4().hex, page() | extra_data)
    return until(lambda: live(host).get(prompt_id))


def answer(host, told, judgement):
    """Give every set that a picker waits for the same judgement."""
    return host.post("/d3po/answer", answer_body(told, judgement))


def answer_body(told, judgement):
    return {
        "prompt_id": told["prompt_id"],
        "node": told["node"],
        "picks": {each["set"]: judgement for each in told["sets"]},
    }


def end_all(host):
    """End whatever runs or is queued."""
    host.post("/queue", {"clear": True})
    until(lambda: not host.get("/queue")["queue_running"] or host.interrupt())


def watch(host, prompt, on_message=lambda message: None, timeout=180):
    """Queue a prompt as a browser would, with a websocket: (history entry, all messages of the prompt)."""
    return awaited(_watch(host, prompt, on_message, timeout))


def awaited(coroutine):
    """What a coroutine returns. It has its own thread, as the browser tests keep an event loop in theirs."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


async def _watch(host, prompt, on_message, timeout):
    client, seen = uuid.uuid4().hex, []
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"{host.url}/ws?clientId={client}", max_msg_size=0) as socket:
            prompt_id = await asyncio.to_thread(host.queue, prompt, client)
            async with asyncio.timeout(timeout):
                async for frame in socket:
                    if frame.type != aiohttp.WSMsgType.TEXT:
                        continue
                    message = json.loads(frame.data)
                    if message["data"].get("prompt_id") != prompt_id:
                        continue
                    seen.append(message)
                    await asyncio.to_thread(on_message, message)
                    if message["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                        break
    return await asyncio.to_thread(host.wait, prompt_id), seen


class Once:
    """An `on_message` that acts when a node first tells its progress."""

    def __init__(self, act, node_id):
        self.act, self.node_id, self.done = act, node_id, False

    def __call__(self, message):
        if not self.done and message["type"] == "progress" and message["data"]["node"] == self.node_id:
            self.done = True
            self.act()


def same_tensors(one, other):
    """Whether two safetensors files hold the same tensors, bit for bit. Their metadata may differ."""
    return content_name(load_file(one)) == content_name(load_file(other))
