"""The nodes' and the widgets' words in the languages of locales/, in the form that ComfyUI's frontend reads.

locales/en/ says what there is to translate. nodeDefs.json has the nodes' own words, as the host tells them:
what is otherwise in it than in the nodes has changed since it was translated. main.json has the widgets',
each by what it is in English in web/.
"""

import json

from tools.host import ROOT

FOLDER = ROOT / "locales"
ENGLISH, FILE, WIDGETS = "en", "nodeDefs.json", "main.json"
# what the frontend reads as a value's name, a link to other words and a choice of plurals, as itself
LITERAL = {ord(sign): f"{{'{sign}'}}" for sign in "{}@|"}


def words(object_info):
    """What the host shows of the pack's nodes: {node: {display_name, description, inputs, outputs}}."""
    return {
        name: {
            "display_name": told["display_name"],
            "description": told["description"].translate(LITERAL),
            "inputs": dict(_inputs(told["input"])),
            "outputs": {
                str(i): _named(label, tooltip)
                for i, (label, tooltip) in enumerate(zip(told["output_name"], told["output_tooltips"]))
            },
        }
        for name, told in sorted(object_info.items())
        if name.startswith("D3PO")
    }


def _inputs(sections, above=""):
    """(key, words) of all inputs, also of those that a choice of a dynamic combo shows. The frontend's keys
    have _ in place of dots."""
    for section in ("required", "optional"):
        for name, (kind, *about) in sections.get(section, {}).items():
            about = about[0] if about else {}
            yield above + name, _named(about.get("display_name") or name, about.get("tooltip"))
            for option in about.get("options", ()) if kind == "COMFY_DYNAMICCOMBO_V3" else ():
                yield from _inputs(option["inputs"], f"{above}{name}_")


def _named(label, tooltip):
    return {"name": label} | ({"tooltip": tooltip.translate(LITERAL)} if tooltip else {})


def read(language):
    file = FOLDER / language / FILE
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def widgets(language):
    """{what the widgets say in English: in that language}"""
    return json.loads((FOLDER / language / WIDGETS).read_text("utf-8"))["d3po"]


def write(language, told):
    file = FOLDER / language / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", "utf-8", newline="\n")


def languages():
    """All but English."""
    return sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir() and folder.name != ENGLISH)


def leaves(told, *path):
    """{path: text} of nested words."""
    if isinstance(told, str):
        return {path: told}
    return {at: text for key, inner in told.items() for at, text in leaves(inner, *path, key).items()}


def nested(texts):
    """The words of {path: text}."""
    told = {}
    for (*above, last), text in texts.items():
        place = told
        for key in above:
            place = place.setdefault(key, {})
        place[last] = text
    return told


def accept(now):
    """Make `now` the English words, and take from the other languages what is no translation of them any
    more. What English has at another place too is taken over from there."""
    before, now = leaves(read(ENGLISH)), leaves(now)
    write(ENGLISH, nested(now))
    for language in languages():
        own = leaves(read(language))
        known = {text: own[path] for path, text in before.items() if path in own}
        write(language, nested({path: known[text] for path, text in now.items() if text in known}))
