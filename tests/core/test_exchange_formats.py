"""D3PO, folders and tables. Sample files are made here as the formats' own descriptions have them."""

import json

import pytest

from d3po_core.exchange.formats import (
    ExchangeError,
    Record,
    read,
    read_d3po,
    read_folders,
    read_table,
    recognise,
    write_d3po,
)
from d3po_core.exchange.table import columns, judgement
from tests.core.samples import encoded, outcomes, save, seeds, write

# --- official D3PO ---


@pytest.fixture
def d3po(tmp_path):
    """Two prompts of three images, named as by scripts/sample.py, judged as the authors say in issue 17."""
    save(tmp_path, *(f"images/{i:05}.png" for i in range(6)))
    write(tmp_path / "prompt.json", ["1 hand", "a cat"])
    write(tmp_path / "json" / "data.json", [[0, -1, 0], [1, 0, 3]])
    (tmp_path / "sample.pkl").write_bytes(b"\x80\x04never opened")
    return tmp_path


def test_d3po_scores_images_and_prompts_are_read_and_the_pickle_is_left_alone(d3po):
    assert recognise(d3po) == "d3po"
    first, second = read(d3po)
    assert (first.prompt, second.prompt) == ("1 hand", "a cat")
    assert first.judgement.as_json == {"scores": [0, -1, 0]} and first.pairs == ((0, 1), (2, 1))
    assert seeds(first) == [0, 1, 2] and seeds(second) == [3, 4, 5]
    assert second.source == "json/data.json, line 1, list 2"


def test_d3po_the_published_data_set_calls_its_image_folder_all_img(d3po):
    (d3po / "images").rename(d3po / "all_img")
    save(d3po, "deformed_img/00001.png")
    assert [seeds(record) for record in read(d3po)] == [[0, 1, 2], [3, 4, 5]]


def test_d3po_scores_of_several_judges_are_averaged_up_to_the_shortest(d3po):
    write(d3po / "json" / "more.json", [[1, 0, -1]])
    [record] = read(d3po)
    assert record.judgement.as_json == {"scores": [0.5, -0.5, -0.5]} and record.annotator == "more"


def test_d3po_averages_that_are_equal_tie_whatever_the_order_of_the_judges(d3po):
    # 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 in floating point, unless it is rounded once.
    for name, row in zip("xyz", ([0.1, 0.3, 0.1], [0.2, 0.2, 0.3], [0.3, 0.1, 0.2])):
        write(d3po / "scores" / f"{name}.json", [row])
    [record] = read_d3po(d3po, scores=d3po / "scores")
    assert record.pairs == ()


def test_d3po_numbers_too_long_to_average_are_an_error_that_says_where(d3po):
    write(d3po / "json" / "data.json", f"[[1, 1{'0' * 400}, 0]]")
    write(d3po / "json" / "more.json", [[1, 2, 0]])
    with pytest.raises(ExchangeError, match="json/data.json, line 1, list 1: "):
        list(read(d3po))


def test_d3po_scores_may_lie_elsewhere_or_be_named_themselves(d3po, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (d3po / "json" / "data.json").rename(elsewhere / "data.json")
    assert len(list(read_d3po(d3po, scores=elsewhere))) == 2
    (elsewhere / "data.json").rename(d3po / "json" / "data.json")
    assert len(list(read(d3po / "json" / "data.json"))) == 2
    (d3po / "json" / "data.json").rename(d3po / "data.json")
    assert len(list(read(d3po / "data.json"))) == len(list(read(d3po))) == 2


@pytest.mark.parametrize(
    "scores, message",
    [
        ([[0, 1, 2], [1, 0]], "data.json, line 1, list 2: 2 scores where the first prompt has 3"),
        ([[0, 1, 2], [1, "good", 0]], "list 2: expected a list of scores for each prompt"),
        ([[0, 1, 2], {"a": 1}], "list 2: expected a list of scores for each prompt"),
        ([[0, 1, 2], [0, 1, float("nan")]], "list 2: .*not a finite number"),
        ([[0, 1, 2], [0, 1, 2], [0, 1, 2]], "list 3: scores for prompt 3, but prompt.json has 2"),
        ([[0, 1], [0, 1], [0, 1], [0, 1]], "list 3: scores for prompt 3"),
        ([[0, 1, 2, 3], [0, 1, 2, 3]], "list 2: the image 00006.png is not in images or all_img"),
    ],
)
def test_d3po_scores_that_do_not_fit_are_an_error_that_says_where(d3po, scores, message):
    write(d3po / "json" / "data.json", scores)
    with pytest.raises(ExchangeError, match=message):
        list(read(d3po))


def test_d3po_without_scores_says_what_is_missing(d3po):
    (d3po / "json" / "data.json").unlink()
    with pytest.raises(ExchangeError, match="has no scores: put the JSON file"):
        list(read_d3po(d3po))


def test_d3po_export_has_the_official_layout(tmp_path):
    write_d3po(
        [
            Record.of("one", [encoded(0), encoded(1), encoded(2)], {"ranking": [2, [0, 1]]}),
            Record.of("two", [encoded(3), encoded(4), encoded(5)], {"scores": [0, -1, 0]}),
        ],
        tmp_path / "out",
    )
    assert json.loads((tmp_path / "out" / "prompt.json").read_text("utf-8")) == ["one", "two"]
    assert json.loads((tmp_path / "out" / "json" / "data.json").read_text("utf-8")) == [[0, 0, 1], [0, -1, 0]]
    assert [path.name for path in sorted((tmp_path / "out" / "images").iterdir())] == [
        f"{i:05}.png" for i in range(6)
    ]


@pytest.mark.parametrize(
    "second, message",
    [
        (Record.of("p", [encoded(0), encoded(1)], {"pairs": [[0, 1]]}), "2 images where the first set has 3"),
        (Record.of("p", [encoded(0), encoded(1), encoded(2)], {"pairs": [[0, 1]]}), "do not rank all images"),
        (
            Record.of("p", [encoded(0), encoded(1), encoded(2)], {"pairs": [[0, 1], [1, 2]]}),
            "do not rank all images",
        ),
    ],
)
def test_d3po_export_of_what_scores_cannot_say_is_refused_and_works_as_pairs(tmp_path, second, message):
    first = Record.of("p", [encoded(0), encoded(1), encoded(2)], {"scores": [2, 1, 0]})
    with pytest.raises(ExchangeError, match=f"record 2: .*{message}.*export as pairs"):
        write_d3po([first, second], tmp_path / "out")
    write_d3po([first, second], tmp_path / "out", pairwise=True)
    assert outcomes(read(tmp_path / "out")) == outcomes([first, second])


# --- folders ---


@pytest.mark.parametrize(
    "w, l",
    [
        ("w", "l"),
        ("win", "lose"),
        ("winner", "loser"),
        ("chosen", "rejected"),
        ("preferred", "rejected"),
        ("good", "bad"),
        ("W", "L"),
    ],
)
def test_sibling_folders_pair_equal_stems(tmp_path, w, l):
    save(tmp_path, f"{w}/one.png", f"{l}/one.jpeg.png", f"{w}/two.webp", f"{l}/two.png")
    (tmp_path / l / "one.jpeg.png").rename(tmp_path / l / "one.png")
    write(tmp_path / w / "one.txt", "a cat\r\n", "utf-8-sig")
    write(tmp_path / "two.caption", "zwei Hunde\nmit Hüten")
    write(tmp_path / w / "Thumbs.db", "")
    assert recognise(tmp_path) == "folders"
    one, two = read(tmp_path)
    assert (one.prompt, two.prompt) == ("a cat", "zwei Hunde\nmit Hüten")
    assert outcomes([one]) == [("a cat", 0, 1)] and one.source == f"{w}/one.png"


@pytest.mark.parametrize("w, l", [("w", "l"), ("win", "lose"), ("winner", "loser"), ("chosen", "rejected")])
def test_endings_pair_images_in_one_folder(tmp_path, w, l):
    save(tmp_path, f"a_b_{w}.png", f"a_b_{l}.png", f"c_{w.upper()}.png", f"c_{l}.png", "unrelated.png")
    write(tmp_path / "a_b.txt", "a cat")
    write(tmp_path / f"c_{l}.txt", "a dog")
    assert recognise(tmp_path) == "folders"
    assert outcomes(read(tmp_path)) == [("a cat", 0, 1), ("a dog", 2, 3)]


@pytest.mark.parametrize(
    "names, message",
    [
        (["w/a.png", "w/b.png", "l/b.png"], "w/a.png: there is no loser of the same name"),
        (["w/b.png", "l/a.png", "l/b.png"], "l/a.png: there is no winner of the same name"),
        (["a_w.png", "b_w.png", "b_l.png"], "a_w.png: there is no loser"),
        (
            ["w/a.jpg", "w/a.png", "w/b.png", "l/a.png", "l/b.png"],
            "w/a.jpg: the same name with another ending",
        ),
        (["a_w.jpg", "a_w.png", "a_l.png", "b_w.png", "b_l.png"], "a_w.*: the same name with another ending"),
    ],
)
def test_an_image_without_partner_or_with_two_is_a_problem_and_the_others_are_read(tmp_path, names, message):
    save(tmp_path, *names)
    problems = []
    assert list(read(tmp_path, problems.append)) and len(problems) == 1
    with pytest.raises(ExchangeError, match=message):
        list(read_folders(tmp_path))


def test_a_caption_that_is_not_utf_8_is_named(tmp_path):
    save(tmp_path, "w/a.png", "l/a.png")
    write(tmp_path / "w" / "a.txt", "Hüte", "latin-1")
    with pytest.raises(ExchangeError, match="w/a.png: w/a.txt is not UTF-8 text"):
        list(read(tmp_path))


def test_a_folder_without_pairs_says_which_names_are_known(tmp_path):
    with pytest.raises(ExchangeError, match="no image pairs.*w/l, win/lose.*001_w.png"):
        list(read_folders(tmp_path))


# --- tables ---


@pytest.mark.parametrize(
    "header",
    [
        "prompt,chosen,rejected",
        "caption,winner,loser",
        "text,win,lose",
        "Prompt,Preferred,Rejected",
        "prompt,image_w,image_l",
        "prompt,chosen_image,rejected_image",
        "prompt,chosen_image_path,rejected_image_path",
        "prompt,image_chosen,image_rejected",
        "prompt,img_path_win,img_path_lose",
        "prompt,better,worse",
        "prompt, Image W , Image L ",
        "PROMPT,good-image,bad-image",
    ],
)
def test_the_common_names_of_columns_are_recognised(tmp_path, header):
    save(tmp_path, "a.png", "b.png")
    write(tmp_path / "pairs.csv", header + "\na cat,a.png,b.png\n")
    assert recognise(tmp_path) == recognise(tmp_path / "pairs.csv") == "table"
    assert outcomes(read(tmp_path)) == outcomes(read(tmp_path / "pairs.csv")) == [("a cat", 0, 1)]


@pytest.mark.parametrize(
    "header, rows",
    [
        (
            "caption,jpg_0,jpg_1,label_0,label_1",
            ["p,a.png,b.png,0,1", "p,a.png,b.png,1.0,0.0", "p,a.png,b.png,0.5,0.5"],
        ),
        ("caption,image_0,image_1,label_0", ["p,a.png,b.png,0", "p,a.png,b.png,1", "p,a.png,b.png,0.5"]),
        ("label_1,image_1,image_0,caption", ["1,b.png,a.png,p", "0,b.png,a.png,p", "0.5,b.png,a.png,p"]),
        (
            "prompt,image_0,image_1,prefer_0,prefer_1",
            ["p,a.png,b.png,False,True", "p,a.png,b.png,True,False", "p,a.png,b.png,False,False"],
        ),
        ("prompt,chosen,rejected,label_0", ["p,b.png,a.png,1", "p,a.png,b.png,", "p,b.png,a.png,0.5"]),
    ],
)
def test_labels_say_which_image_won_and_which_two_tie(tmp_path, header, rows):
    save(tmp_path, "a.png", "b.png")
    write(tmp_path / "pairs.csv", "\n".join([header, *rows]))
    second, first, tie = read(tmp_path)
    assert outcomes([second]) == [("p", 1, 0)] and outcomes([first]) == [("p", 0, 1)]
    assert tie.judgement.as_json == {"ties": [[0, 1]]}


def test_rows_that_nobody_judged_are_passed_over(tmp_path):
    save(tmp_path, "a.png", "b.png")
    write(
        tmp_path / "pairs.csv",
        "caption,jpg_0,jpg_1,label_0,label_1,has_label,user_id\n"
        "one,a.png,b.png,0,0,False,7\ntwo,a.png,b.png,0,1,True,8\n",
    )
    [record] = read(tmp_path)
    assert record.prompt == "two" and record.annotator == "8"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_with_and_without_bom_and_with_the_separators_of_spreadsheets(tmp_path, encoding, delimiter):
    save(tmp_path, "a.png", "b.png")
    rows = [["prompt", "chosen", "rejected"], ['"Hüte, \n""rot""; klein"', "a.png", "b.png"]]
    write(tmp_path / "pairs.csv", "\r\n".join(map(delimiter.join, rows)) + "\r\n\r\n", encoding)
    assert outcomes(read(tmp_path)) == [('Hüte, \n"rot"; klein', 0, 1)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_jsonl_as_invoke_training_writes_it(tmp_path, encoding):
    save(tmp_path, "images/a.png", "images/b.png")
    row = {
        "prompt": "Hüte",
        "image_0": "images/a.png",
        "image_1": "images/b.png",
        "prefer_0": False,
        "prefer_1": True,
    }
    write(tmp_path / "metadata.jsonl", json.dumps(row, ensure_ascii=False) + "\n\n", encoding)
    assert outcomes(read(tmp_path)) == [("Hüte", 1, 0)]


def test_a_json_list_of_pairs_is_a_table_too(tmp_path):
    save(tmp_path, "a.png", "b.png")
    write(tmp_path / "pairs.json", [{"prompt": None, "chosen": "b.png", "rejected": "a.png"}])
    assert outcomes(read(tmp_path / "pairs.json")) == [(None, 1, 0)]


@pytest.mark.parametrize(
    "name, text, message",
    [
        (
            "p.csv",
            "prompt,image_0,image_1\np,a.png,b.png",
            "p.csv, line 1: .*do not say which image of a pair won",
        ),
        (
            "p.csv",
            "chosen,rejected\na.png,b.png,c.png",
            "p.csv, line 2: 3 fields where the first line names 2",
        ),
        ("p.csv", 'chosen,rejected\na.png,b.png\n"a.png,b.png\n', "p.csv, line 3: unexpected end"),
        ("p.csv", 'chosen,rejected\n"a"x,b.png\na.png,b.png', "p.csv, line 2: "),
        (
            "p.csv",
            "image_0,image_1,label_0\na.png,b.png,left",
            "p.csv, line 2: the label 'left' is not a number",
        ),
        ("p.csv", "image_0,image_1,label_0\na.png,b.png,", "p.csv, line 2: label_0 and label_1 are empty"),
        ("p.csv", "image_0,image_1,label_0\na.png,b.png,2", "p.csv, line 2: .*not between 0 and 1"),
        (
            "p.csv",
            "image_0,image_1,label_0\na.png,b.png,nan",
            "p.csv, line 2: the label 'nan' is not a number",
        ),
        ("p.jsonl", '\n{"chosen": "a.png"', "p.jsonl, line 2: .*each line must be a JSON object"),
        ("p.jsonl", '["a.png", "b.png"]', "p.jsonl, line 1: expected an object"),
        ("p.jsonl", '{"chosen": "a.png"}', "p.jsonl, line 1: .*do not say which"),
        (
            "p.jsonl",
            '{"chosen": "a.png", "rejected": ["b.png"]}',
            "p.jsonl, line 1: .*not the name of a file",
        ),
        (
            "p.jsonl",
            '{"prompt": 3, "chosen": "a.png", "rejected": "b.png"}',
            "p.jsonl, line 1: the prompt is 3",
        ),
        ("p.jsonl", "[" * 100_000, "p.jsonl, line 1: "),
        (
            "p.json",
            '[{"chosen": "a.png", "rejected": "b.png"},\n{"chosen": "a',
            "p.json, line 2: .*damaged or cut off",
        ),
        ("p.json", '[{"chosen": "a.png", "rejected": "b.png"}\n{}]', "p.json, line 2: expected a comma"),
        ("p.json", '{"chosen": "a.png"}', "p.json, line 1: expected a JSON list"),
    ],
)
def test_a_malformed_table_is_an_error_with_file_and_line(tmp_path, name, text, message):
    save(tmp_path, "a.png", "b.png")
    with pytest.raises(ExchangeError, match=message):
        list(read_table(write(tmp_path / name, text)))


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.json"])
def test_a_table_in_another_encoding_says_how_to_save_it(tmp_path, name):
    write(tmp_path / name, "prompt,chosen,rejected\nHüte,a,b\n", "utf-16")
    with pytest.raises(ExchangeError, match=f"{name} is not UTF-8 text: save it again as UTF-8"):
        list(read_table(tmp_path / name))


def test_columns_that_only_look_like_images_are_not_taken_for_them():
    names = [
        "image_0_uid",
        "image_0_url",
        "image_1_uid",
        "image_1_url",
        "jpg_0",
        "jpg_1",
        "prompt_image",
        "caption",
        "label_0",
        "best_image_uid",
        "model_0",
        "user_id",
    ]
    assert columns(names) == {
        "first": "jpg_0",
        "second": "jpg_1",
        "prompt": "caption",
        "label_0": "label_0",
        "annotator": "user_id",
    }


@pytest.mark.parametrize(
    "labels, expected",
    [
        ((1, 0), {"pairs": [[0, 1]]}),
        ((0, 1), {"pairs": [[1, 0]]}),
        ((0.5, 0.5), {"ties": [[0, 1]]}),
        ((0.7, None), {"pairs": [[0, 1]]}),
        ((None, 1), {"pairs": [[1, 0]]}),
        ((None, 0.5), {"ties": [[0, 1]]}),
        (("True", "False"), {"pairs": [[0, 1]]}),
        ((False, True), {"pairs": [[1, 0]]}),
    ],
)
def test_judgement_of_labels(labels, expected):
    assert judgement(*labels) == expected
