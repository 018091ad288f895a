// Nodes whose result is a text show it on themselves.

import { app } from "../../scripts/app.js"
import { ComfyWidgets } from "../../scripts/widgets.js"
import { nodeAt } from "./inbox.js"

const REPORTERS = [
  "D3PODatasetStatistics",
  "D3POManageRuns",
  "D3POImportPreferences",
  "D3POExportPreferences",
  "D3POSaveToDataset",
  "D3POLoadSets",
  "D3POLoadPreferences",
  "D3POEncodePairs"
]
const NAME = "report"
const LEAST_HEIGHT = 90 // of the text

/** @param {HostNode} node */
const isReporter = (node) => REPORTERS.includes(node.constructor.comfyClass ?? "")

/** A text on a node that nobody can type into, and that is not saved.
 *  @param {HostNode} node */
function place(node) {
  const { widget } = ComfyWidgets.STRING(node, NAME, ["STRING", { multiline: true }], app)
  widget.serialize = false
  widget.options.serialize = false
  widget.options.read_only = true
  if (widget.element) widget.element.readOnly = true
  const [width, height] = node.size
  const least = node.computeSize()[1]
  node.setSize([width, Math.max(height, least) + LEAST_HEIGHT])
  return widget
}

/** @param {HostNode} node
 *  @param {NodeOutput} output */
function show(node, output) {
  const text = output?.text?.join("\n\n")
  if (text === undefined) return
  const widget = node.widgets?.find((each) => each.name === NAME) ?? place(node)
  widget.value = text
  node.setDirtyCanvas(true, true)
}

app.registerExtension({
  name: "D3PO.Report",
  nodeCreated(node) {
    if (!isReporter(node)) return
    const { onExecuted } = node
    node.onExecuted = function (...told) {
      onExecuted?.apply(this, told)
      show(node, /** @type {NodeOutput} */ (told[0]))
    }
  },
  onNodeOutputsUpdated(outputs) {
    // kept ones, for a workflow that is shown again
    for (const [locator, output] of Object.entries(outputs)) {
      const node = nodeAt(locator)
      if (node && isReporter(node)) show(node, output)
    }
  }
})
