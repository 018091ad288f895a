// Save Run's button that takes back the last round.

import { app } from "../../scripts/app.js"
import { post } from "./inbox.js"
import { tr } from "./language.js"
import { hearing, tell } from "./told.js"

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
  const reply = await post("/d3po/undo", { run }).catch(() => null)
  const said = await reply?.json().catch(() => null)
  tell(node.title, reply?.ok ? "success" : "warn", said?.told ?? said?.error ?? "The server does not answer.")
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
