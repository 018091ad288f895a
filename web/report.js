// Nodes whose result is a text show it on themselves.

import { app } from "../../scripts/app.js"
import { ComfyWidgets } from "../../scripts/widgets.js"
import { hearing } from "./told.js"

const REPORTERS = [
  "D3PODatasetStatistics",
  "D3POManageRuns",
  "D3POImportPreferences",
  "D3POExportPreferences",
  "D3POSaveToDataset",
  "D3POLoadSets",
  "D3POLoadPreferences",
  "D3POEncodePairs",
  "D3POTastePreference",
  "D3PORate",
  "D3POBestOfN",
  "D3PONoiseSearch",
  "D3PODOODL",
  "D3PORENO",
  "D3POTasteScorer"
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
 *  @param {NodeOutput | undefined} output */
function show(node, output) {
  const text = output?.text?.join("\n\n")
  if (text === undefined) return
  const widget = node.widgets?.find((each) => each.name === NAME) ?? place(node)
  widget.value = text
  node.setDirtyCanvas(true, true)
}

app.registerExtension({ ...hearing(isReporter, show), name: "D3PO.Report" })
