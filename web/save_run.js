// Save Run's button that takes back the last round.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { nodeAt } from "./inbox.js"

const NAME = "undo last round"
const LIFE = 15_000 // of what is told, in milliseconds

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

/** @param {HostNode} node
 *  @param {"success" | "warn"} severity
 *  @param {string} detail */
function tell(node, severity, detail) {
  app.extensionManager.toast.add({ severity, summary: node.title, detail, life: LIFE })
}

/** @param {HostNode} node */
async function undo(node) {
  const written = node.widgets?.find((widget) => widget.name === "run")?.value
  const run = saved.get(node) ?? String(written ?? "").trim()
  if (!run) {
    tell(node, "warn", "Which run? Write its name in 'run', or press Run first.")
    return
  }
  const body = JSON.stringify({ run })
  const headers = { "Content-Type": "application/json" }
  const reply = await api.fetchApi("/d3po/undo", { method: "POST", headers, body }).catch(() => null)
  const said = await reply?.json().catch(() => null)
  tell(node, reply?.ok ? "success" : "warn", said?.told ?? said?.error ?? "The server does not answer.")
}

app.registerExtension({
  name: "D3PO.SaveRun",
  nodeCreated(node) {
    if (!isSaveRun(node)) return
    const button = node.addWidget("button", NAME, null, () => undo(node), { serialize: false })
    button.serialize = false
    const { onExecuted } = node
    node.onExecuted = function (...told) {
      onExecuted?.apply(this, told)
      hear(node, /** @type {NodeOutput} */ (told[0]))
    }
  },
  onNodeOutputsUpdated(outputs) {
    for (const [locator, output] of Object.entries(outputs)) {
      const node = nodeAt(locator)
      if (node && isSaveRun(node)) hear(node, output)
    }
  }
})
