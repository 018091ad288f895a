"""Looking at candidates, and what the widget is to keys, fingers, themes and screen readers."""

import os
from importlib.metadata import version

import pytest

from tests.web.picker import Picker, keep, set_setting
from tests.web.test_judging import by_number, only
from tools.host import FRONTEND_WANTED

MODES = {"pairs": 4, "ranking": 7, "best": 7, "stars": 4, "thumbs": 4}


def shoot(picker, name):
    picker.settle()
    keep(picker.page, name)


def test_the_frontend_is_the_one_that_is_wanted(page):
    wanted = os.environ.get(FRONTEND_WANTED) or version("comfyui-frontend-package")
    assert page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__") == wanted


def asked(picker, **options):
    picker = picker(**({"candidates": 4, "size": 128} | options))
    picker.run()
    picker.question()
    picker.focus()
    return picker


def matrices(picker):
    """The transformation of each image on screen."""
    return picker.root.locator(".d3po-frame").evaluate_all(
        "(frames) => frames.map((f) => getComputedStyle(f).transform)"
    )


def visible(picker):
    return picker.root.locator(".d3po-pane").evaluate_all(
        "(panes) => panes.map((pane) => getComputedStyle(pane).visibility === 'visible')"
    )


# the renderers differ in where the widget stands, and not in what it shows
@pytest.mark.parametrize("renderer, mode", [("canvas", "pairs"), *(("nodes 2.0", mode) for mode in MODES)])
def test_the_main_states_are_drawn(picker, renderer, mode):
    one = asked(picker, candidates=MODES[mode], mode=mode, renderer=renderer, size=256)
    try:
        for palette in ("dark", "light"):
            set_setting(one.page, "Comfy.ColorPalette", palette)
            shoot(one, f"{renderer} {palette} {mode} asked".replace(" ", "_"))
            box, node = one.root.bounding_box(), one.part("stage").bounding_box()
            assert box["width"] > 500 and node["height"] > 250
            for pane in one.root.locator(".d3po-pane").all():
                inner = pane.bounding_box()
                assert inner["x"] >= box["x"] and inner["y"] + inner["height"] <= box["y"] + box["height"]
            foot = one.part("foot").bounding_box()
            assert foot["y"] + foot["height"] <= box["y"] + box["height"]
            one.press("2", "?")
            shoot(one, f"{renderer} {palette} {mode} keys".replace(" ", "_"))
            one.press("u", "?")
    finally:
        set_setting(one.page, "Comfy.ColorPalette", "dark")


@pytest.mark.frontend
def test_the_widget_grows_with_its_node(picker, renderer):
    one = asked(picker, renderer=renderer)
    before = one.part("stage").bounding_box()
    one.js("(node) => { node.setSize([900, 900]); app.canvas.setDirty(true, true) }")
    one.until(lambda: one.part("stage").bounding_box()["height"] > before["height"] + 100)
    assert one.part("stage").bounding_box()["width"] > before["width"] + 200


def test_zoom_and_pan_move_both_images_alike_and_a_drag_is_no_answer(picker, renderer):
    one = asked(picker, renderer=renderer)
    assert matrices(one) == ["none", "none"]
    pane = one.root.locator(".d3po-pane").nth(0)
    box = pane.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    one.page.mouse.move(x, y)
    one.page.mouse.wheel(0, -600)
    one.until(lambda: matrices(one)[0] != "none")
    zoomed = matrices(one)
    assert zoomed[0] == zoomed[1]
    scale = one.page.evaluate("() => app.canvas.ds.scale")
    one.page.mouse.down()
    one.page.mouse.move(x + 40, y + 30, steps=4)
    one.page.mouse.up()
    moved = matrices(one)
    assert moved[0] == moved[1] != zoomed[0]
    assert one.value == {} and one.page.evaluate("() => app.canvas.ds.scale") == scale
    one.press("0")
    assert matrices(one) == ["none", "none"]
    pane.click()
    assert len(one.value) == 1


@pytest.mark.frontend
def test_the_wheel_zooms_the_canvas_while_the_widget_has_no_focus(picker, renderer):
    one = asked(picker, renderer=renderer)
    one.js("(node) => document.activeElement.blur()")
    scale = one.page.evaluate("() => app.canvas.ds.scale")
    box = one.part("stage").bounding_box()
    one.page.mouse.move(box["x"] + 50, box["y"] + 50)
    one.page.mouse.wheel(0, 200)
    one.until(lambda: one.page.evaluate("() => app.canvas.ds.scale") != scale)
    assert matrices(one) == ["none", "none"]
    one.page.evaluate("() => app.canvas.ds.reset()")


@pytest.mark.frontend
def test_the_middle_button_moves_the_canvas(picker):
    one = asked(picker)
    offset = "() => [...app.canvas.ds.offset]"
    before = one.page.evaluate(offset)
    box = one.part("stage").bounding_box()
    one.page.mouse.move(box["x"] + 50, box["y"] + 50)
    one.page.mouse.down(button="middle")
    one.page.mouse.move(box["x"] + 150, box["y"] + 80, steps=5)
    one.page.mouse.up(button="middle")
    one.until(lambda: one.page.evaluate(offset) != before)
    assert one.value == {} and matrices(one) == ["none", "none"]
    one.page.evaluate("() => app.canvas.ds.reset()")


def test_the_same_place_shows_one_image_and_holding_f_the_other(picker):
    one = asked(picker)
    assert visible(one) == [True, True]
    one.press("o")
    assert visible(one) == [True, False]
    one.page.keyboard.down("f")
    assert visible(one) == [False, True]
    shoot(one, "same_place")
    one.page.keyboard.up("f")
    assert visible(one) == [True, False] and one.value == {}
    one.press("2")
    assert len(one.value) == 1 and visible(one) == [True, False]
    one.press("o")
    one.page.keyboard.down("f")
    assert visible(one) == [False, True]  # also from side by side
    one.page.keyboard.up("f")
    assert visible(one) == [True, True]


def test_the_flip_button_flips_while_it_is_held(picker):
    one = asked(picker)
    box = one.part("flip").bounding_box()
    one.page.mouse.move(box["x"] + 5, box["y"] + 5)
    one.page.mouse.down()
    assert visible(one) == [False, True]
    one.page.mouse.up()
    assert visible(one) == [True, True] and one.value == {}


@pytest.mark.frontend
def test_the_expanded_view_opens_only_by_hand_and_closes_without_consequence(picker, host, renderer):
    one = picker(candidates=3, when_missing="wait", size=44, renderer=renderer)
    one.run(wait=False)
    one.question()
    assert not one.page.locator("dialog[open]").count()
    one.focus()
    one.press("e")
    dialog = one.page.locator("dialog.d3po-dialog[open]")
    assert dialog.count() == 1 and one.question()
    shoot(one, f"expanded_{renderer}".replace(" ", "_"))
    one.press("1")
    assert "1 done" in one.text and dialog.bounding_box()["width"] > 1300
    one.page.keyboard.press("Escape")
    one.until(lambda: not dialog.count())
    assert len(one.queue()[0]) == 1 and one.question() and len(one.value) == 1
    one.answer_as(by_number)
    one.until(lambda: one.queue() == [[], []])


def test_thumbs_are_drawn_over_what_is_judged(picker, renderer):
    one = asked(picker, mode="thumbs", renderer=renderer, candidates=6, size=256)
    name = renderer.replace(" ", "_")
    one.press("1", "2", "s", "1", "[", "[", "[")
    assert one.root.locator(".d3po-badge .d3po-thumb-down").count() == 1
    shoot(one, f"{name}_thumbs_again")
    one.press("e")
    shoot(one, f"{name}_thumbs_expanded")
    one.press("]", "]", "]", "1", "2")
    assert one.kind == "done"
    shoot(one, f"{name}_thumbs_expanded_done")
    one.press("e")
    shoot(one, f"{name}_thumbs_done")
    pane, thumbs = one.root.locator(".d3po-pane").first.bounding_box(), one.root.locator(".d3po-badge svg")
    assert thumbs.count() == 5 and 15 < thumbs.first.bounding_box()["height"] < pane["height"] / 3
    turned = thumbs.evaluate_all("(all) => all.map((e) => getComputedStyle(e).transform)")
    assert turned == ["none"] * 3 + ["matrix(1, 0, 0, -1, 0, 0)"] * 2


@pytest.mark.frontend
def test_keys_of_the_widget_do_not_reach_the_host_and_the_hosts_do_not_answer(picker):
    one = asked(picker)
    nodes, scale = "() => app.graph._nodes.length", "() => JSON.stringify(app.canvas.ds)"
    before = (
        one.page.evaluate(nodes),
        one.page.evaluate(scale),
        one.page.locator(".sidebar-content-container, .p-dialog").count(),
    )
    one.js("(node) => app.canvas.selectNode(node)")
    one.focus()
    one.page.evaluate(
        "() => { window.reached = []; "
        """window.addEventListener("keydown", (event) => window.reached.push(event.key)) }"""
    )
    one.press(
        "1",
        "2",
        "3",
        "s",
        "b",
        "u",
        "o",
        "o",
        "[",
        "]",
        "e",
        "e",
        "?",
        "?",
        "+",
        "-",
        "0",
        "ArrowLeft",
        "ArrowDown",
    )
    one.part("mode").select_option("thumbs")
    one.press("ArrowUp", "ArrowDown", "1", "2", "u")
    assert one.page.evaluate("() => window.reached") == []
    assert before == (
        one.page.evaluate(nodes),
        one.page.evaluate(scale),
        one.page.locator(".sidebar-content-container, .p-dialog").count(),
    )
    done = one.value
    one.js("(node) => document.activeElement.blur()")
    one.page.locator("canvas").first.focus()
    for key in ("1", "2", "s", "u"):
        one.page.keyboard.press(key)
    assert one.value == done


def test_a_held_key_answers_once(picker):
    one = asked(picker)
    for _ in range(5):
        one.page.keyboard.down("1")
    one.page.keyboard.up("1")
    assert len(only(one.value.values())["log"]["pairs"]) == 1


def test_the_keys_are_shown(picker):
    one = asked(picker)
    one.press("?")
    help_text = one.part("help").inner_text()
    for word in ("the left one", "the right one", "no difference", "skip", "both bad", "undo", "expand"):
        assert word in help_text
    one.press("?")
    assert one.part("help").is_hidden()


def test_everything_has_a_role_a_name_and_a_visible_focus(picker):
    one = asked(picker, mode="pairs")
    for mode in MODES:
        one.js("(node, mode) => { node.properties.mode = mode; node.d3po.view.reset() }", mode)
        one.question()
        nameless = one.root.locator("button, select, input, progress").evaluate_all("""(elements) =>
            elements.filter((e) =>
                !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.[0]?.textContent.trim())
            ).map((e) => e.outerHTML)""")
        assert nameless == []
    assert one.root.get_attribute("role") == "group" and one.root.get_attribute("aria-label")
    assert one.part("status").get_attribute("aria-live") == "polite" and one.part("status").inner_text()
    one.page.keyboard.press("Tab")
    outline = one.page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_the_whole_session_can_be_reached_by_tab_and_enter(picker):
    one = asked(picker, candidates=2)
    for _ in range(20):
        one.page.keyboard.press("Tab")
        if one.page.evaluate("() => document.activeElement.dataset.act") == "tie":
            break
    one.page.keyboard.press("Enter")
    one.drawn()
    assert len(only(one.value.values())["ties"]) == 1


def test_what_was_chosen_is_told_by_more_than_colour(picker):
    one = asked(picker)
    one.press("1", "[")
    chosen = one.root.locator(".d3po-pane[aria-pressed='true']")
    assert chosen.count() == 1
    assert "✓" in chosen.locator(".d3po-badge").evaluate("(e) => getComputedStyle(e, '::after').content")
    assert "answered: preferred" in one.part("status").inner_text()


def test_reduced_motion_is_respected(picker):
    one = asked(picker, candidates=2)
    pane, duration = (
        one.root.locator(".d3po-pane").first,
        "(e) => parseFloat(getComputedStyle(e).transitionDuration)",
    )
    assert pane.evaluate(duration) > 0.01
    one.page.emulate_media(reduced_motion="reduce")
    assert pane.evaluate(duration) < 0.001
    one.page.emulate_media(reduced_motion="no-preference")


@pytest.mark.frontend
def test_a_tap_picks(host, new_page):
    page = new_page(has_touch=True)
    one = Picker.build(page, host, candidates=2, size=43)
    one.run()
    left, right = one.question()
    one.root.locator(".d3po-pane").nth(1).tap()
    one.until(lambda: one.value)
    assert only(one.value.values())["pairs"] == [[right, left]]


@pytest.mark.frontend
def test_the_nodes_own_preview_does_not_show_beside_the_widget(picker, renderer):
    one = asked(picker, renderer=renderer)
    widgets = one.js("(node) => node.widgets.map((widget) => widget.name)")
    assert widgets == ["picks", "when_missing", "time_limit"]
    assert one.page.locator(".image-preview, [data-testid='image-preview']").count() == 0


def test_keys_go_on_after_a_click_on_a_button_that_then_goes(picker):
    one = asked(picker, candidates=2)
    one.click("right")
    assert one.kind == "done" and one.page.evaluate("() => document.activeElement.className") == "d3po-root"
    one.press("u")
    assert one.kind == "pair" and one.value == {}
