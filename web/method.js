// The train step on the page: it shows the settings of the chosen method only, and tells what its training
// warned of. So that nobody misses them, what other nodes of the pack warn of is told in the same corner of
// the screen.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { nodeAt, nodeOf } from "./inbox.js"

const TRAIN_STEP = "D3POTrainStep"
const LIFE = 20000 // ms that a warning stays on the screen
const MARK = "warnings"

/** @type {(node: HostNode) => boolean} */
const isTrainStep = (node) => node.constructor.comfyClass === TRAIN_STEP
/** @type {(node: HostNode, name: string) => boolean} */
const isLinked = (node, name) =>
  node.inputs.some(({ widget }, slot) => widget?.name === name && node.isInputConnected(slot))

/** @param {HostNode} node */
const methodOf = (node) =>
  /** @type {HostWidget} */ (node.widgets?.find((widget) => widget.name === "method"))

/** Hide what the chosen method does not use. A linked widget stays, and so do all where the method is linked.
 *  @param {HostNode} node */
function showUsed(node) {
  const { unused } = node.constructor.nodeData.input.optional.method[1]
  const useless = isLinked(node, "method") ? [] : (unused[String(methodOf(node).value)] ?? [])
  const ofSome = new Set(Object.values(unused).flat())
  for (const widget of (node.widgets ?? []).filter(({ name }) => ofSome.has(name))) {
    const hidden = useless.includes(widget.name) && !isLinked(node, widget.name)
    // Newer frontends add to this, when it is read, that a link stands in a widget's place.
    widget.hidden = hidden
    // Nodes 2.0 looks here; at times it holds on to the options of the widget that this one was copied from
    for (const options of [widget.options, widget._state?.options]) if (options) options.hidden = hidden
  }
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

/** Keep a train step's widgets to its method, for good.
 *  @param {HostNode} node */
function follow(node) {
  const { onConfigure, onConnectionsChange } = node
  const method = methodOf(node)
  const { callback } = method
  method.callback = function (...told) {
    callback?.apply(this, told)
    showUsed(node)
    resize(node, node.size[0], leastHeight(node))
  }
  node.onConfigure = function (...told) {
    onConfigure?.apply(this, told)
    const saved = /** @type {{ size: [width: number, height: number] }} */ (told[0])
    showUsed(node)
    resize(node, saved.size[0], Math.max(saved.size[1], leastHeight(node)))
  }
  node.onConnectionsChange = function (...told) {
    onConnectionsChange?.apply(this, told)
    showUsed(node)
  }
}

/** @param {HostNode} node
 *  @param {string[]} warnings */
function toast(node, warnings) {
  app.extensionManager.toast.add({
    severity: "warn",
    summary: node.title,
    detail: warnings.join("\n"),
    life: LIFE
  })
}

/** Put a button on a node whose last training warned of something, which tells again of what. It is not
 *  saved.
 *  @param {HostNode} node
 *  @param {string[]} warnings */
function mark(node, warnings) {
  const before = leastHeight(node)
  const old = node.widgets?.find((widget) => widget.name === MARK)
  if (old) node.removeWidget(old)
  if (warnings.length) {
    const button = node.addWidget("button", MARK, null, () => toast(node, warnings), { serialize: false })
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
    if (isTrainStep(node)) follow(node)
  },
  onNodeOutputsUpdated(outputs) {
    // kept ones, for a workflow that is shown again
    for (const [locator, output] of Object.entries(outputs)) {
      const node = nodeAt(locator)
      if (node && isTrainStep(node)) mark(node, output?.warnings ?? [])
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
      if (warnings.length && !isOld) toast(node, warnings)
    })
  }
})
