"""Derive the API prompt of a workflow saved by ComfyUI's frontend, as the frontend's graphToPrompt does."""

import json
from pathlib import Path
from typing import Any, NamedTuple

IDLE = MUTED, BYPASSED = 2, 4
INPUT_NODE, OUTPUT_NODE = "-10", "-20"
VIRTUAL = ("Note", "MarkdownNote", "Reroute", "PrimitiveNode")
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
WIDGET_DEFAULTS = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}
WIDGET_TYPES = set(
    "INT FLOAT STRING BOOLEAN COMBO COMFY_DYNAMICCOMBO_V3 MARKDOWN TEXTAREA COLOR COLORS CURVE RANGE "
    "BOUNDING_BOX BOUNDING_BOXES CHART GALLERIA PAINTER IMAGECOMPARE".split()
)
ON_TRAIN_STEP = ("method", "strength", "epochs", "rank", "targets")
UPLOADS = ("image_upload", "video_upload", "animated_image_upload")


class Link(NamedTuple):
    """A connection between two slots of one graph."""

    id: int
    origin: str
    origin_slot: int
    target: str
    target_slot: int


class Wire(NamedTuple):
    """An input is fed by the output of another node of the prompt."""

    node: str
    slot: int


class Value(NamedTuple):
    """An input is fed by a plain value."""

    value: Any


def node(class_type, **inputs):
    """A node of an API prompt."""
    return {"class_type": class_type, "inputs": inputs}


def train_nodes(name, wires, values) -> dict:
    """A train step of an API prompt and the node of its settings, by their names. `wires` are the step's."""
    shown = {key: value for key, value in values.items() if key in ON_TRAIN_STEP}
    settings = {key: value for key, value in values.items() if key not in ON_TRAIN_STEP}
    return {
        name: node("D3POTrainStep", settings=[f"{name} settings", 0], **wires, **shown),
        f"{name} settings": node("D3POTrainSettings", **settings),
    }


def load(path) -> dict:
    """Read a workflow file."""
    return json.loads(Path(path).read_text("utf-8"))


def to_api(ui_workflow: dict, object_info: dict) -> dict:
    """The API prompt of a workflow in the frontend's format, for a host with these node definitions."""
    prompt = {}
    _add_nodes(Level(ui_workflow, _definitions(ui_workflow), object_info), prompt)
    for node in prompt.values():
        for name, value in list(node["inputs"].items()):
            if isinstance(value, list) and value[0] not in prompt:
                del node["inputs"][name]
    return prompt


def control_values(ui_workflow: dict, object_info: dict) -> dict:
    """How widgets move on after a run, {node id of the API prompt: {input: fixed, increment, decrement or
    randomize}}, of those that a page offers to."""
    found = {}
    _add_controls(Level(ui_workflow, _definitions(ui_workflow), object_info), found)
    return found


def _add_controls(level, found):
    for node in level.nodes.values():
        if level.is_subgraph(node):
            _add_controls(level.enter(node), found)
        elif node["type"] in level.object_info:
            controls = {}
            saved = iter(node.get("widgets_values") or [])
            _read_widgets(level.object_info[node["type"]]["input"], saved, {}, {}, controls=controls)
            if controls:
                found[level.execution_id(node)] = controls


def unknown_nodes(ui_workflow: dict, object_info: dict) -> list:
    """The types of its nodes that a host has no definition of."""
    definitions = _definitions(ui_workflow)
    graphs = [ui_workflow, *definitions.values()]
    types = {node["type"] for graph in graphs for node in graph["nodes"] if node.get("mode") not in IDLE}
    return sorted(types - {*VIRTUAL, *definitions, *object_info})


def _definitions(graph) -> dict:
    """All subgraph definitions by id, also those nested in others."""
    found = {}
    for subgraph in (graph.get("definitions") or {}).get("subgraphs") or []:
        found |= {subgraph["id"]: subgraph, **_definitions(subgraph)}
    return found


def _link(link) -> Link:
    if isinstance(link, dict):
        link = [link[key] for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
    return Link(link[0], str(link[1]), int(link[2]), str(link[3]), int(link[4]))


class Level:
    """The workflow's root, or one instance of a subgraph: `host` is its node in the graph around it."""

    def __init__(self, graph, definitions, object_info, parent=None, host=None):
        self.graph, self.definitions, self.object_info = graph, definitions, object_info
        self.parent, self.host = parent, host
        self.path = (*parent.path, str(host["id"])) if parent else ()
        self.nodes = {str(node["id"]): node for node in graph["nodes"]}
        self.links = {link.id: link for link in map(_link, graph.get("links") or [])}
        self.promoted = self._promoted() if host else {}

    def is_subgraph(self, node) -> bool:
        return node["type"] in self.definitions

    def enter(self, node) -> "Level":
        """The level inside a subgraph node."""
        return Level(self.definitions[node["type"]], self.definitions, self.object_info, self, node)

    def execution_id(self, node) -> str:
        return ":".join((*self.path, str(node["id"])))

    def _promoted(self) -> dict:
        """Values of the subgraph's node for inner widgets, by (inner node, widget). -1 is the subgraph."""
        values = self.host.get("widgets_values") or []
        entries = (self.host.get("properties") or {}).get("proxyWidgets")
        if not entries:
            slots = enumerate(self.graph["inputs"])
            entries = [("-1", slot["name"]) for index, slot in slots if self._widgets_behind(index)]
        return {
            (str(entry[0]), entry[1]): value for entry, value in zip(entries, values) if value is not None
        }

    def _widgets_behind(self, index) -> list:
        """The (node, widget name) pairs that an input of this subgraph is linked to."""
        links = [
            link.id for link in self.links.values() if (link.origin, link.origin_slot) == (INPUT_NODE, index)
        ]
        slots = [
            (node, slot)
            for node in self.nodes.values()
            for slot in node.get("inputs") or []
            if "widget" in slot
        ]
        return [
            (node, slot["widget"]["name"])
            for link in links
            for node, slot in slots
            if slot.get("link") == link
        ]

    def widgets(self, node) -> tuple:
        """The values and the types of a node's widgets by name, before links."""
        values, kinds = {}, {}
        definition = self.object_info[node["type"]]
        _read_widgets(definition["input"], iter(node.get("widgets_values") or []), values, kinds)
        return {
            name: self.promoted.get((str(node["id"]), name), value) for name, value in values.items()
        }, kinds

    def host_value(self, name):
        """The Value of a widget of the subgraph's own node; None if there is no such widget."""
        for key, values in (
            (("-1", name), self.promoted),
            ((str(self.host["id"]), name), self.parent.promoted),
        ):
            if key in values:
                return Value(values[key])
        names = [slot["name"] for slot in self.graph["inputs"]]
        for node, widget in self._widgets_behind(names.index(name)):
            if self.is_subgraph(node):
                return self.enter(node).host_value(widget)
            values = self.widgets(node)[0]
            if widget in values:
                return Value(values[widget])

    def input_source(self, slot, wanted=None):
        """What feeds an input slot: a Wire, a Value, or None."""
        link = self.links.get(slot.get("link"))
        return link and self._link_source(link, wanted or slot["type"])

    def _link_source(self, link, wanted):
        if link.origin != INPUT_NODE:
            origin = self.nodes.get(link.origin)
            return origin and self.output_source(origin, link.origin_slot, wanted)
        name = self.graph["inputs"][link.origin_slot]["name"]
        for slot in self.host.get("inputs") or []:
            if slot["name"] == name and slot.get("link") is not None:
                return self.parent.input_source(slot)
        return self.host_value(name)

    def output_source(self, node, slot, wanted):
        """What an output slot stands for, seen through bypassed, virtual and subgraph nodes."""
        if node.get("mode") == MUTED:
            return None
        inputs = node.get("inputs") or []
        if node.get("mode") == BYPASSED:
            index = _bypass_slot(inputs, node["outputs"][slot]["type"], slot, wanted)
            return None if index is None else self.input_source(inputs[index])
        if self.is_subgraph(node):
            inner = self.enter(node)
            ends = [
                link
                for link in inner.links.values()
                if (link.target, link.target_slot) == (OUTPUT_NODE, slot)
            ]
            return inner._link_source(ends[0], wanted) if ends else None
        if node["type"] == "Reroute":
            return self.input_source(inputs[0], wanted) if inputs else None
        if node["type"] == "PrimitiveNode":
            promoted = [value for (owner, _), value in self.promoted.items() if owner == str(node["id"])]
            return next((Value(value) for value in (*promoted, *(node.get("widgets_values") or []))), None)
        return Wire(self.execution_id(node), slot)


def _fits(one, other) -> bool:
    """Whether two slot types may be connected; a type may be a list with commas, or a wildcard."""
    kinds, others = (set(str(kind).lower().split(",")) for kind in (one, other))
    return bool({"*", "", "0"} & (kinds | others) or kinds & others)


def _bypass_slot(inputs, output_type, slot, wanted):
    """The input whose value a bypassed node passes to this output."""
    if wanted in ("*", ""):
        return slot if slot < len(inputs) else 0 if inputs else None
    types = [entry["type"] for entry in inputs]
    candidates = [i for i, kind in enumerate(types) if _fits(kind, output_type) and _fits(kind, wanted)]
    if slot in candidates:
        return slot
    return types.index(wanted) if wanted in types else next(iter(candidates), None)


def _add_nodes(level, prompt):
    for node in level.nodes.values():
        if node.get("mode") in IDLE or node["type"] in VIRTUAL:
            continue
        if level.is_subgraph(node):
            _add_nodes(level.enter(node), prompt)
            continue
        if node["type"] not in level.object_info:
            raise ValueError(f"node {level.execution_id(node)}: the host has no node {node['type']}")
        title = node.get("title") or level.object_info[node["type"]].get("display_name") or node["type"]
        inputs = _inputs(level, node)
        prompt[level.execution_id(node)] = {
            "inputs": inputs,
            "class_type": node["type"],
            "_meta": {"title": title},
        }


def _inputs(level, node) -> dict:
    widgets, kinds = level.widgets(node)
    inputs = {name: _boxed(value, kinds[name]) for name, value in widgets.items()}
    for slot in node.get("inputs") or []:
        source = level.input_source(slot)
        if isinstance(source, Wire):
            inputs[slot["name"]] = [source.node, source.slot]
        elif isinstance(source, Value):
            inputs[slot["name"]] = _boxed(source.value, kinds.get(slot["name"]))
    return inputs


def _boxed(value, kind):
    """In a prompt a bare list would be read as a link."""
    if not isinstance(value, list):
        return value
    return {"__type__": "CURVE", "__value__": value} if kind == "CURVE" else {"__value__": value}


def _read_widgets(inputs, saved, values, kinds, prefix="", controls=None):
    """Take saved values, which are positional, in the order in which the frontend makes these widgets."""
    controls = {} if controls is None else controls
    for section in ("required", "optional"):
        specs = {prefix + name: spec_of(spec) for name, spec in (inputs.get(section) or {}).items()}
        for name, (kind, options) in specs.items():
            if options.get("forceInput") or not (options.get("widgetType") or kind in WIDGET_TYPES):
                continue
            values[name] = next(saved, _default(kind, options))
            kinds[name] = options.get("widgetType") or kind
            for place in range(_controls(name, kind, options)):
                how = next(saved, None)
                if not place and how:
                    controls[name] = how
            for option in options["options"] if kind == DYNAMIC_COMBO else ():
                if option["key"] == values[name]:
                    _read_widgets(option["inputs"], saved, values, kinds, name + ".", controls)
        if section == "required" and any(
            options.get(upload) for _, options in specs.values() for upload in UPLOADS
        ):
            next(saved, None)  # the upload button


def spec_of(spec):
    """(kind, options) of an input's definition, whichever of the host's forms it has."""
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
    return ("COMBO", {"options": spec[0], **options}) if isinstance(spec[0], list) else (spec[0], options)


def _default(kind, options):
    if "default" in options:
        return options["default"]
    choices = options.get("options") or [None]
    if kind == DYNAMIC_COMBO:
        return choices[0]["key"]
    return choices[0] if kind == "COMBO" else WIDGET_DEFAULTS.get(kind)


def _controls(name, kind, options) -> int:
    """How many values for 'control after generate' are saved behind a widget's own."""
    control = options.get("control_after_generate")
    if kind == "INT":
        return int(bool(name in ("seed", "noise_seed") if control is None else control))
    return {"FLOAT": 1, "COMBO": 2}.get(kind, 0) if control else 0
