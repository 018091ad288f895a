import json
import math
import pickle
import re
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file, save_file

from d3po_core.candidates.kernels import KERNELS, Ancestral, described, kernel_of
from d3po_core.candidates.trajectory import FIRST_FORMAT, FORMAT, Trajectory


@pytest.fixture
def trajectory(toy):
    return toy.record(toy.Denoiser(toy.net()), eta=0.7)


@pytest.fixture
def saved(trajectory, tmp_path):
    path = tmp_path / "set.safetensors"
    trajectory.save(path)
    return path


def test_save_and_load_keep_every_bit(trajectory, tmp_path):
    trajectory.settings = {"seed": 2**64 - 1, "cfg": 7.5, "prompt": "ein Bär"}
    trajectory.states[0, 0, 0, 0, :2] = torch.tensor([-0.0, 1e-45])
    trajectory.save(tmp_path / "set.safetensors")
    conditioning = object()
    loaded = Trajectory.load(tmp_path / "set.safetensors", conditioning)
    for name in ("states", "denoised", "sigmas"):
        ours, theirs = getattr(trajectory, name), getattr(loaded, name)
        assert ours.dtype == theirs.dtype and torch.equal(ours.view(torch.int32), theirs.view(torch.int32))
    assert loaded.kernel == Ancestral(0.7) and loaded.settings == trajectory.settings
    assert (loaded.set_id, loaded.model, loaded.policy) == (
        trajectory.set_id,
        trajectory.model,
        trajectory.policy,
    )
    assert loaded.conditioning is conditioning


def test_the_file_is_plain_safetensors_without_conditioning(trajectory, tmp_path):
    trajectory.conditioning = {"secret": torch.ones(3)}
    trajectory.save(tmp_path / "set.safetensors")
    assert set(load_file(tmp_path / "set.safetensors")) == {"states", "denoised", "sigmas"}
    content = (tmp_path / "set.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert set(header) == {"d3po"} and json.loads(header["d3po"])["format"] == FORMAT
    assert b"secret" not in content


def test_views_of_larger_tensors_can_be_saved(trajectory, tmp_path):
    part = Trajectory(
        trajectory.states[:, ::2],
        trajectory.denoised[:, ::2],
        trajectory.sigmas,
        trajectory.kernel,
        "part",
        "net",
        "base",
    )
    part.save(tmp_path / "part.safetensors")
    assert torch.equal(Trajectory.load(tmp_path / "part.safetensors").states, trajectory.states[:, [0, 2]])


def rewrite(path, header):
    save_file(load_file(path), path, metadata=header)


def d3po_header(**changes):
    header = {
        "format": FORMAT,
        "kernel": {"name": "ancestral", "eta": 1.0},
        "set_id": "s",
        "model": "m",
        "policy": "p",
        "settings": {},
    } | changes
    return {"d3po": json.dumps({k: v for k, v in header.items() if v is not ...})}


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a trajectory at all" * 10),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes()[:40]),
        lambda path: path.write_bytes(pickle.dumps({"states": [1.0]})),
        lambda path: torch.save({"states": torch.ones(2)}, path),
        lambda path: rewrite(path, None),
        lambda path: rewrite(path, {"format": "pt"}),
        lambda path: rewrite(path, {"d3po": "{not json"}),
        lambda path: rewrite(path, {"d3po": "[1, 2]"}),
        lambda path: rewrite(path, d3po_header(format="d3po.trajectory/99")),
        lambda path: rewrite(path, d3po_header(kernel=...)),
        lambda path: rewrite(path, d3po_header(kernel={"name": "ancestral", "eta": 0})),
        lambda path: rewrite(path, d3po_header(kernel={"name": "ancestral", "eta": "one"})),
        lambda path: rewrite(path, d3po_header(kernel={"name": "ancestral", "theta": 1.0})),
        lambda path: rewrite(path, d3po_header(kernel={"eta": 1.0})),
        lambda path: rewrite(path, d3po_header(format=FIRST_FORMAT)),
        lambda path: rewrite(path, d3po_header(policy=...)),
        lambda path: save_file({"states": torch.ones(1)}, path, metadata=d3po_header()),
        lambda path: save_file(
            {
                "states": torch.ones(3, 1, 2, 2, 2),
                "denoised": torch.ones(1, 1, 2, 2, 2),
                "sigmas": torch.ones(3),
            },
            path,
            metadata=d3po_header(),
        ),
        lambda path: save_file(
            {
                "states": torch.ones(3, 0, 2, 2, 2),
                "denoised": torch.ones(2, 0, 2, 2, 2),
                "sigmas": torch.zeros(3),
            },
            path,
            metadata=d3po_header(),
        ),
        lambda path: path.unlink(),
    ],
    ids=[
        "empty",
        "garbage",
        "truncated data",
        "truncated header",
        "pickle",
        "torch.save",
        "no metadata",
        "foreign",
        "bad json",
        "json list",
        "newer format",
        "no kernel",
        "eta 0",
        "eta text",
        "another parameter",
        "no name",
        "first format without eta",
        "no policy",
        "tensors missing",
        "shapes differ",
        "no candidates",
        "missing",
    ],
)
def test_a_foreign_or_damaged_file_is_an_error_that_names_it(saved, damage):
    damage(saved)
    before = saved.read_bytes() if saved.exists() else None
    with pytest.raises(ValueError, match=re.escape(str(saved))):
        Trajectory.load(saved)
    assert (saved.read_bytes() if saved.exists() else None) == before


def test_a_file_of_the_first_format_is_read(trajectory, saved):
    rewrite(saved, d3po_header(format=FIRST_FORMAT, kernel=..., eta=0.7, set_id=trajectory.set_id))
    read = Trajectory.load(saved)
    assert read.kernel == Ancestral(0.7) and read.set_id == trajectory.set_id
    assert torch.equal(read.states, trajectory.states)


def test_steps_of_a_kind_that_is_not_known_are_named(saved):
    rewrite(saved, d3po_header(kernel={"name": "leap", "eta": 0.7}))
    with pytest.raises(
        ValueError, match="of the kind 'leap', and this version of the pack knows ancestral, flow "
    ):
        Trajectory.load(saved)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_kernel_is_made_again_from_its_description(kernel):
    one = kernel(*[0.7] * len(fields(kernel)))
    assert kernel_of(json.loads(json.dumps(described(one)))) == one


def place_of(path, name, step=0, of=None):
    """Where a step of a tensor begins in a file."""
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    start, end = json.loads(content[8:size])[name]["data_offsets"]
    return size + start + (step * (end - start) // of if of else 0)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name, steps", [("states", 5), ("denoised", 4)])
def test_one_changed_bit_is_seen_where_its_step_is_read_and_nowhere_else(trajectory, saved, name, steps):
    flip(saved, place_of(saved, name, 2, steps) + 9)
    told = f"{re.escape(str(saved))} is damaged: step 2 of {name} is not what was written"
    with pytest.raises(ValueError, match=told):
        Trajectory.load(saved)
    opened, whole = getattr(Trajectory.open(saved), name), getattr(trajectory, name)
    for index in (0, 1, 3, -1, slice(0, 2), slice(3, None), (1, slice(0, 1))):
        assert torch.equal(opened[index], whole[index])
    for index in (
        2,
        2 - steps,
        slice(None),
        slice(1, 3),
        slice(None, None, 2),
        (2, slice(0, 1)),
        (slice(None), 2),
    ):
        with pytest.raises(ValueError, match=told):
            opened[index]


@pytest.mark.parametrize("read", [Trajectory.load, Trajectory.open])
def test_one_changed_bit_in_the_sigmas_or_the_header_is_seen_when_a_file_is_opened(saved, read):
    whole = saved.read_bytes()
    for place in (place_of(saved, "sigmas") + 1, whole.index(b"eta") + 7, whole.index(b"set 0") + 4):
        saved.write_bytes(whole)
        flip(saved, place)
        with pytest.raises(ValueError, match=re.escape(str(saved))):
            read(saved)


def test_files_from_before_there_were_checksums_are_read(trajectory, saved):
    save_file(
        {name: getattr(trajectory, name) for name in ("states", "denoised", "sigmas")},
        saved,
        metadata=d3po_header(),
    )
    assert torch.equal(Trajectory.load(saved).states, trajectory.states)
    assert torch.equal(Trajectory.open(saved).denoised[1:], trajectory.denoised[1:])


@pytest.mark.parametrize("name", ["states", "denoised"])
def test_numbers_that_cannot_be_trained_on_are_refused_by_the_files_name(trajectory, saved, name):
    given = getattr(trajectory, name)
    setattr(trajectory, name, (100 * given).long())
    trajectory.save(saved)
    for read in (Trajectory.load, Trajectory.open):
        with pytest.raises(
            ValueError, match=f"{re.escape(str(saved))} .*{name} holds int64, and latents are floating-point"
        ):
            read(saved)
    for spoiled in (float("nan"), float("inf")):
        setattr(trajectory, name, given.clone())
        getattr(trajectory, name)[1, 2, 0, 0, 0] = spoiled
        trajectory.save(saved)
        told = (
            f"{re.escape(str(saved))}: step 1 of {name} holds numbers that are not finite.*"
            "cannot be trained on.*Record them again"
        )
        with pytest.raises(ValueError, match=told):
            Trajectory.load(saved)
        opened = getattr(Trajectory.open(saved), name)
        assert torch.equal(opened[0], given[0])
        with pytest.raises(ValueError, match=told):
            opened[1]


def test_loading_runs_no_pickle(saved):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a pickle was loaded",)

    for content in (pickle.dumps(Trap()), b"\x80\x02" + pickle.dumps(Trap(), protocol=0)):
        saved.write_bytes(content)
        with pytest.raises(ValueError):
            Trajectory.load(saved)


def test_tensors_whose_shapes_do_not_fit_are_errors(trajectory):
    def make(states=trajectory.states, denoised=trajectory.denoised, sigmas=trajectory.sigmas):
        return Trajectory(states, denoised, sigmas, trajectory.kernel, "set", "net", "base")

    assert make().count == 3
    with pytest.raises(ValueError, match="5 sigmas need 5 states and 4 denoised latents, got 4 and 4"):
        make(states=trajectory.states[1:])
    with pytest.raises(ValueError, match="got 5 and 3"):
        make(denoised=trajectory.denoised[1:])
    with pytest.raises(ValueError, match="differ"):
        make(denoised=trajectory.denoised[:, :2])
    with pytest.raises(ValueError, match="differ"):
        make(states=trajectory.states[..., :2])


@pytest.mark.parametrize(
    "sigmas", [[1, 2, 3], [3, 2, -1], [3, math.nan, 0], [math.inf, 1, 0], [[3], [1], [0]]]
)
def test_noise_levels_that_no_sampling_goes_by_are_errors(trajectory, saved, sigmas):
    """Also in a file without checksums, which is otherwise whole."""
    tensors = load_file(saved)
    tensors = {"states": tensors["states"][:3], "denoised": tensors["denoised"][:2]}
    save_file(tensors | {"sigmas": torch.tensor(sigmas).float()}, saved, metadata=d3po_header())
    with pytest.raises(ValueError, match=f"{re.escape(str(saved))}.*noise levels"):
        Trajectory.open(saved)


def test_actions_leave_out_the_deterministic_last_step(toy):
    denoise = toy.Denoiser(toy.net())
    assert toy.record(denoise, sigmas=(8.0, 2.0, 0.5, 0.0)).actions == [0, 1]
    assert toy.record(denoise, sigmas=(8.0, 2.0, 0.5)).actions == [0, 1]
