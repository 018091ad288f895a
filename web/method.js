// The train step on the page: D3PO Train Settings shows what the train step's method uses, and the train
// step tells what its training warned of. So that nobody misses them, what other nodes of the pack warn of is
// told in the same corner of the screen.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { nodeAt, nodeOf } from "./inbox.js"
import { tell } from "./told.js"

const TRAIN_STEP = "D3POTrainStep"
const SETTINGS = "D3POTrainSettings"
const LIFE = 20 // seconds that a warning stays on the screen
const MARK = "warnings"

/** @typedef {HostNode | null | undefined} Node */

/** @param {Node} node
 *  @returns {node is HostNode} */
const isTrainStep = (node) => node?.constructor.comfyClass === TRAIN_STEP
/** @param {Node} node
 *  @returns {node is HostNode} */
const isSettings = (node) => node?.constructor.comfyClass === SETTINGS
/** @type {(node: HostNode, name: string) => boolean} */
const isLinked = (node, name) =>
  node.inputs.some(({ widget }, slot) => widget?.name === name && node.isInputConnected(slot))
/** @param {HostNode} step */
const methodOf = (step) =>
  /** @type {HostWidget} */ (step.widgets?.find((widget) => widget.name === "method"))

/** The methods of the train steps that a settings node is wired to; null is one that cannot be told.
 *  @param {HostNode} node
 *  @returns {Set<string | null>} */
function methodsOf(node) {
  const { graph } = node
  const ends = (node.outputs[0].links ?? []).map((id) => graph?.getNodeById(graph.getLink(id)?.target_id))
  return new Set(
    ends.map((end) => (isTrainStep(end) && !isLinked(end, "method") ? String(methodOf(end).value) : null))
  )
}

/** Hide what the train step's method does not use. A linked widget stays, and all do where there is no one
 *  method.
 *  @param {HostNode} node */
function showUsed(node) {
  const [method, ...others] = methodsOf(node)
  const specs = node.constructor.nodeData.input.optional
  for (const widget of node.widgets ?? []) {
    const { unused_by: needless } = specs[widget.name]?.[1] ?? {}
    if (!needless) continue
    const useless = method != null && needless.includes(method)
    const hidden = !others.length && useless && !isLinked(node, widget.name)
    // Newer frontends add to this, when it is read, that a link stands in a widget's place.
    widget.hidden = hidden
    // Nodes 2.0 looks here; at times it holds on to the options of the widget that this one was copied from
    for (const options of [widget.options, widget._state?.options]) if (options) options.hidden = hidden
  }
  const widgets = node.widgets ?? []
  widgets.push(...widgets.splice(-1)) // and it looks only where a node's widgets change
}

/** @type {(node: HostNode) => number} */
const leastHeight = (node) => node.computeSize()[1]

/** @param {HostNode} node
 *  @param {number} width
 *  @param {number} height */
function resize(node, width, height) {
  node.setSize([width, height])
  node.setDirtyCanvas(true, true)
}

/** Heights of settings nodes as they were saved: the host makes a node that it loads as high as all its
 *  widgets.
 *  @type {WeakMap<HostNode, number>} */
const savedHeights = new WeakMap()

/** Keep a settings node to its method, for what it is wired to now.
 *  @param {HostNode} node */
function show(node) {
  if (!node.graph) return // it has been removed
  const before = leastHeight(node)
  const saved = savedHeights.get(node)
  savedHeights.delete(node)
  showUsed(node)
  const least = leastHeight(node)
  if (saved !== undefined) resize(node, node.size[0], Math.max(saved, least))
  else if (least !== before) resize(node, node.size[0], node.size[1] + least - before)
}

/** The same once all nodes and links around it are there.
 *  @param {HostNode} node */
const showSoon = (node) => queueMicrotask(() => show(node))

/** Call `heard` after what a node or a widget does of itself when this is called on it.
 *  @template {string} Name
 *  @param {{ [name in Name]?: (...told: unknown[]) => unknown }} owner
 *  @param {Name} name
 *  @param {(...told: unknown[]) => void} heard */
function after(owner, name, heard) {
  const own = owner[name]
  owner[name] = function (...told) {
    const result = own?.apply(this, told)
    heard(...told)
    return result
  }
}

/** @param {HostNode} node */
function followSettings(node) {
  after(node, "onConfigure", (saved) => {
    savedHeights.set(node, /** @type {{ size: [number, number] }} */ (saved).size[1])
    showSoon(node)
  })
  after(node, "onGraphConfigured", () => show(node)) // Nodes 2.0 looks at a workflow's nodes right after this
  after(node, "onConnectionsChange", () => showSoon(node))
}

/** @param {HostNode} node */
function followStep(node) {
  const told = () => {
    const settings = node.graph && node.getInputNode(node.findInputSlot("settings")) // a clone has no graph
    if (isSettings(settings)) show(settings)
  }
  after(methodOf(node), "callback", told) // at once, for one step of the undo
  after(node, "onConnectionsChange", () => queueMicrotask(told))
}

/** @param {HostNode} node
 *  @param {string[]} warnings */
const warn = (node, warnings) => tell(node.title, "warn", warnings.join("\n"), LIFE)

/** Put a button on a node whose last training warned of something, which tells again of what. It is not
 *  saved.
 *  @param {HostNode} node
 *  @param {string[]} warnings */
function mark(node, warnings) {
  const before = leastHeight(node)
  const old = node.widgets?.find((widget) => widget.name === MARK)
  if (old) node.removeWidget(old)
  if (warnings.length) {
    const button = node.addWidget("button", MARK, null, () => warn(node, warnings), { serialize: false })
    button.serialize = false
    button.label = `⚠ ${warnings.length} ${warnings.length === 1 ? "warning" : "warnings"}`
  }
  // a saved size has the button in it already
  const height = warnings.length
    ? Math.max(node.size[1], leastHeight(node))
    : node.size[1] + leastHeight(node) - before
  resize(node, node.size[0], height)
}

app.registerExtension({
  name: "D3PO.Method",
  nodeCreated(node) {
    if (isTrainStep(node)) followStep(node)
    if (isSettings(node)) followSettings(node)
  },
  onNodeOutputsUpdated(outputs) {
    // kept ones, for a workflow that is shown again
    for (const [locator, output] of Object.entries(outputs)) {
      const node = nodeAt(locator)
      if (isTrainStep(node)) mark(node, output?.warnings ?? [])
    }
  },
  setup() {
    /** @type {ServerEvents["execution_cached"]} */
    let cached = { nodes: [] }
    api.addEventListener("execution_cached", ({ detail }) => {
      cached = detail
    })
    api.addEventListener("executed", ({ detail }) => {
      const node = nodeOf(detail.node)
      if (!node?.constructor.comfyClass?.startsWith("D3PO")) return
      const warnings = detail.output?.warnings ?? []
      if (isTrainStep(node)) mark(node, warnings)
      const isOld = cached.prompt_id === detail.prompt_id && cached.nodes.includes(detail.node)
      if (warnings.length && !isOld) warn(node, warnings)
    })
  }
})
