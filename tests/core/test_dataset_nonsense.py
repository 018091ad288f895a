"""Datasets that another program made up or altered: an error that names the set, and the others go on."""

import contextlib
import hashlib
import json
import random
import sqlite3

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from d3po_core.dataset import tree
from d3po_core.dataset.store import Dataset, DatasetError
from tests.core.datasets import judge

DEEP = "[" * 100_000 + "]" * 100_000
NONSENSE = [
    None,
    "",
    "x",
    "null",
    "[]",
    "{}",
    "1",
    "NaN",
    "1e999",
    '"a"',
    "[[0, 99]]",
    "[[0]]",
    '{"pairs": 1}',
    '{"pairs": [[0, 1]], "log": 1e999}',
    '{"good": 5}',
    '{"scores": "x"}',
    '{"good": [{}]}',
    DEEP,
    10**15,
    -1,
    1.5,
    b"\xff\x00",
    b"{}",
    float("inf"),
    "9" * 5000,
]
READS = [
    lambda d, s: d.find(s),
    lambda d, s: d.trajectory(s),
    lambda d, s: d.conditioning(s),
    lambda d, s: d.images(s),
    lambda d, s: d.settings(s),
    lambda d, s: d.judgements(s),
    lambda d, s: d.pairs(s),
    lambda d, s: d.scores(s),
    lambda d, s: d.liked(s),
    lambda d, s: d.image_files(s),
]


@pytest.fixture
def folder(tmp_path, toy):
    with Dataset(tmp_path / "taste") as dataset:
        for seed in (7, 8):
            recorded = toy.record(toy.Denoiser(toy.net()), seed=seed)
            dataset.add_set(
                f"set {seed}",
                trajectory=recorded,
                images=torch.rand(3, 8, 8, 3),
                conditioning={"c": [torch.rand(9), (1.5, "x")], "number": seed},
            )
            judge(dataset, f"set {seed}", {"pairs": [[0, 1]], "good": [0], "bad": [1]}, "anna")
            judge(dataset, f"set {seed}", {"scores": [1, 2, 3]}, "ben")
    return tmp_path / "taste"


def require_other_set_to_go_on(dataset):
    row = dataset.find("set 8")
    assert row in dataset.sets() and dataset.pairs("set 8") == [(0, 1), (1, 0), (2, 0), (2, 1)]
    assert len(dataset.images("set 8")) == 3 and dataset.conditioning("set 8")["number"] == 8
    assert dataset.trajectory("set 8").states[0].shape[0] == 3
    json.dumps(dataset.statistics())


@pytest.mark.parametrize(
    "table, column",
    [
        ("sets", "settings"),
        ("sets", "created"),
        ("sets", "candidates"),
        ("sets", "prompt"),
        ("sets", "model"),
        ("sets", "model_name"),
        ("sets", "share"),
        ("sets", "trajectory"),
        ("sets", "trajectory_bytes"),
        ("images", "file"),
        ("images", "candidate"),
        ("judgements", "judgement"),
        ("judgements", "pairs"),
        ("judgements", "annotator"),
        ("judgements", "strict"),
        ("judgements", "ties"),
        ("judgements", "time"),
        ("judgements", "tool"),
    ],
)
def test_nonsense_in_the_index_is_an_error_that_names_the_set_and_spares_the_others(folder, table, column):
    where = "set_id" if table != "sets" else "id"
    errors = 0
    for value in NONSENSE:
        with contextlib.closing(sqlite3.connect(folder / "index.sqlite", isolation_level=None)) as index:
            row, before = index.execute(
                f"SELECT rowid, {column} FROM {table} WHERE {where} = 'set 7'"
            ).fetchone()
            with contextlib.suppress(sqlite3.IntegrityError):  # of a column that must not be NULL
                index.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", [value, row])
        with Dataset(folder) as dataset:
            for read in READS:
                try:
                    read(dataset, "set 7")
                except DatasetError as error:
                    assert "'set 7'" in str(error) or "index" in str(error)
                    errors += 1
            require_other_set_to_go_on(dataset)
        with contextlib.closing(sqlite3.connect(folder / "index.sqlite", isolation_level=None)) as index:
            index.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", [before, row])
    assert errors or column in ("strict", "ties", "annotator", "tool", "candidate")


HEADERS = ["1", "null", "[]", '"x"', "{}", DEEP, '{"format": []}', "{"]


def crafted_headers(whole, names):
    """The header with nonsense in each place, one at a time, and nonsense in the header's own place."""
    yield from HEADERS
    for name in names:
        for value in (None, [], {}, "x", -1, 0, [[]], {"a": []}, 10**400):
            yield json.dumps(json.loads(whole) | {name: value})


def rewrite(path, header):
    save_file(
        {name: tensor.clone() for name, tensor in load_file(path).items()}, path, metadata={"d3po": header}
    )


def require_damage_is_told(dataset, path, read, headers, column):
    with safe_open(path, framework="pt") as file:
        whole = file.metadata()["d3po"]
    refused = 0
    for header in headers(whole):
        rewrite(path, header)
        dataset._index.write(lambda index: index.execute(*column(path.stat().st_size)))
        try:
            read()
        except DatasetError as error:
            assert "'set 7'" in str(error) and str(path) in str(error)
            refused += 1
    assert refused > 15


def test_nonsense_in_a_trajectorys_header_is_damage_of_its_set(folder):
    with Dataset(folder) as dataset:
        path = folder / dataset._row("set 7")["trajectory"]
        require_damage_is_told(
            dataset,
            path,
            lambda: dataset.trajectory("set 7"),
            lambda whole: crafted_headers(
                whole, ["format", "kernel", "set_id", "model", "policy", "settings"]
            ),
            lambda size: ("UPDATE sets SET trajectory_bytes = ? WHERE id = 'set 7'", [size]),
        )
        require_other_set_to_go_on(dataset)


TREES = [
    {"tuple": 5},
    {"dict": "abc"},
    {"dict": 1},
    {"tensor": []},
    {"tensor": {}},
    {"float": []},
    {"float": "x"},
    {"unknown": 1},
    {},
    {"tuple": [], "dict": {}},
    {"dict": {"a": {"tuple": None}}},
    {"tensor": "missing"},
    {"dict": [1, 2]},
]


TEXTS = [*map(json.dumps, TREES), '{"tuple": [' * 700 + "1" + "]}" * 700]


@pytest.mark.parametrize("structure", TEXTS, ids=range(len(TEXTS)))
def test_a_conditioning_tree_of_nonsense_is_damage_of_its_set(folder, structure):
    with Dataset(folder) as dataset:
        path = (
            folder
            / dataset._index.read(
                "SELECT file FROM conditioning JOIN sets ON conditioning = hash WHERE id = 'set 7'"
            )[0]["file"]
        )
        rewrite(path, f'{{"format": "{tree.FORMAT}", "tree": {structure}}}')
        name = hashlib.sha256(structure.encode()).hexdigest()
        dataset._index.write(
            lambda index: (
                index.execute("PRAGMA defer_foreign_keys = ON"),
                index.execute(
                    "UPDATE conditioning SET hash = ?, bytes = ? WHERE file = ?",
                    [name, path.stat().st_size, path.relative_to(folder).as_posix()],
                ),
                index.execute("UPDATE sets SET conditioning = ? WHERE id = 'set 7'", [name]),
            )
        )
        with pytest.raises(DatasetError, match="set 'set 7'"):
            dataset.conditioning("set 7")
        require_other_set_to_go_on(dataset)


def test_whatever_bytes_the_index_has_only_dataset_errors_come_of_it(folder):
    whole, chance, refused = (folder / "index.sqlite").read_bytes(), random.Random(0), 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(chance.choice([1, 10, 200])):
            content[chance.randrange(100, len(content))] = chance.randrange(256)
        (folder / "index.sqlite").write_bytes(content)
        try:
            with Dataset(folder) as dataset:
                for row in dataset.sets():
                    for read in READS:
                        with contextlib.suppress(DatasetError):
                            read(dataset, row.id)
                dataset.statistics()
        except DatasetError:
            refused += 1
    assert refused > 5
