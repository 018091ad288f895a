// Save Run's button that takes back the last round.

import { app } from "../../scripts/app.js"
import { tr } from "./language.js"
import { hearing, request, tell } from "./told.js"

const NAME = "undo last round"

/** The run that each node saved last; its widget may be empty.
 *  @type {WeakMap<HostNode, string>} */
const saved = new WeakMap()

/** @param {HostNode} node */
const isSaveRun = (node) => node.constructor.comfyClass === "D3POSaveRun"

/** @param {HostNode} node
 *  @param {NodeOutput | undefined} output */
function hear(node, output) {
  const run = output?.run?.[0]
  if (run) saved.set(node, run)
}

/** @param {HostNode} node */
async function undo(node) {
  const written = node.widgets?.find((widget) => widget.name === "run")?.value
  const run = String(written ?? "").trim() || saved.get(node)
  if (!run) {
    tell(node.title, "warn", "Which run? Write its name in 'run', or press Run first.")
    return
  }
  const said = await request(node.title, "/d3po/undo", { run })
  if (said) tell(node.title, "success", said.told ?? "")
}

const heard = hearing(isSaveRun, hear)

app.registerExtension({
  ...heard,
  name: "D3PO.SaveRun",
  nodeCreated(node) {
    heard.nodeCreated(node)
    if (!isSaveRun(node)) return
    const button = node.addWidget("button", NAME, null, () => undo(node), { serialize: false })
    button.serialize = false
    button.label = tr(NAME)
  }
})
