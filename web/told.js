// What nodes give as they run, heard by the page, and what the page tells of a node.

import { app } from "../../scripts/app.js"
import { nodeAt, post, refusal } from "./inbox.js"
import { tr } from "./language.js"

/** The parts of an extension that hear what nodes give: as they run, and again where a workflow is shown once
 *  more.
 *  @param {(node: HostNode) => boolean} isOurs
 *  @param {(node: HostNode, output: NodeOutput | undefined) => void} hear */
export const hearing = (isOurs, hear) => ({
  /** @param {HostNode} node */
  nodeCreated(node) {
    if (!isOurs(node)) return
    const { onExecuted } = node
    node.onExecuted = function (...told) {
      onExecuted?.apply(this, told)
      hear(node, /** @type {NodeOutput} */ (told[0]))
    }
  },
  /** @param {Record<string, NodeOutput>} outputs */
  onNodeOutputsUpdated(outputs) {
    for (const [locator, output] of Object.entries(outputs)) {
      const node = nodeAt(locator)
      if (node && isOurs(node)) hear(node, output)
    }
  }
})

/** Show a notice for some seconds.
 *  @param {string} summary
 *  @param {"success" | "warn" | "error"} severity
 *  @param {string} detail
 *  @param {number} seconds */
export function tell(summary, severity, detail, seconds = 15) {
  app.extensionManager.toast.add({ severity, summary, detail: tr(detail), life: 1000 * seconds })
}

/** Send JSON to the server: what it says, or null where it refuses, which is told.
 *  @param {string} summary
 *  @param {string} path
 *  @param {object} body
 *  @returns {Promise<{ told?: string, file?: string } | null>} */
export async function request(summary, path, body) {
  const reply = await post(path, body).catch(() => null)
  if (reply?.ok) return reply.json().catch(() => null)
  tell(summary, "warn", await refusal(reply))
  return null
}
