"""JSON in small pieces, and what survives an export and an import."""

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from d3po_core.candidates.judgement import Judgement
from d3po_core.exchange import json_text
from d3po_core.exchange.formats import (
    WRITERS,
    Record,
    read,
    write_d3po,
)
from tests.core.samples import encoded, outcomes, write

# --- streaming JSON ---


value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(value, max_size=6), st.sampled_from([None, 0, 3]), st.booleans(), st.integers(1, 9))
@example([0.5, 12, 1e30, -1], None, True, 1)
def test_a_json_list_read_in_small_pieces_is_what_the_json_module_reads(
    tmp_path, monkeypatch, given, indent, ascii, n
):
    monkeypatch.setattr(json_text, "CHUNK", n)
    text = json.dumps(given, indent=indent, ensure_ascii=ascii)
    path = write(tmp_path / "x.json", text)
    assert [item for _, item in json_text.items(path, "x.json")] == json.loads(text)


# --- round trips ---


def test_prompts_and_annotators_survive_every_format_that_has_them(tmp_path):
    prompts = ["plain", 'Hüte, "rot"; 猫\t🎩', "two\nlines", "=1+1", None]
    records = [Record.of(prompt, [encoded(0), encoded(1)], {"pairs": [[1, 0]]}, "me") for prompt in prompts]
    for name, export in WRITERS.items():
        export(records, tmp_path / name)
        back = list(read(tmp_path / name))
        assert [record.prompt for record in back] == prompts
        if name in ("csv", "jsonl", "pickapic", "hps"):
            assert {record.annotator for record in back} == {"me"}


candidates = 4
index = st.integers(0, candidates - 1)
two = st.lists(index, min_size=2, max_size=2, unique=True)
judgements = st.one_of(
    st.lists(two, min_size=1, max_size=5, unique_by=frozenset).map(lambda pairs: {"pairs": pairs}),
    st.lists(st.integers(-2, 2) | st.none(), min_size=candidates, max_size=candidates).map(
        lambda scores: {"scores": scores}
    ),
    st.permutations(range(candidates)).flatmap(
        lambda order: st.integers(0, candidates).map(lambda n: {"ranking": [list(order[:n]), *order[n:]]})
    ),
    st.tuples(two, st.permutations(range(candidates))).map(
        lambda both: {"ties": [both[0]], "ranking": list(both[1])}
    ),
    st.lists(
        st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=candidates, max_size=candidates
    ).map(lambda scores: {"scores": scores}),
)
EXPORTS = {**WRITERS, "d3po": lambda records, folder: write_d3po(records, folder, pairwise=True)}


@pytest.mark.parametrize("name", EXPORTS)
@settings(max_examples=15, deadline=None)
@given(st.lists(judgements, min_size=1, max_size=3))
def test_an_export_and_an_import_give_the_same_prompts_pairs_and_pixels(name, tmp_path_factory, given):
    given = [judgement for judgement in given if Judgement.parse(judgement, candidates).pairs]
    records = [
        Record.of(f"prompt {n}", [encoded(4 * n + i) for i in range(candidates)], judgement)
        for n, judgement in enumerate(given)
    ]
    folder = tmp_path_factory.mktemp("round") / "trip"
    if records:
        summary = EXPORTS[name](records, folder)
        expected = outcomes(records)
        assert sorted(outcomes(read(folder))) == sorted(expected)
        assert summary.pairs == len(expected) and summary.records == len(records)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=4))
def test_d3po_scores_survive_as_they_are(tmp_path_factory, given):
    given = [scores for scores in given if len(set(scores)) > 1]
    if given:
        folder = tmp_path_factory.mktemp("round") / "trip"
        write_d3po(
            [Record.of("p", [encoded(i) for i in range(3)], {"scores": scores}) for scores in given], folder
        )
        assert [record.judgement.as_json["scores"] for record in read(folder)] == given
