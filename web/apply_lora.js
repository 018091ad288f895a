// A run's LoRA into the graph on screen.

import { app } from "../../scripts/app.js"
import { tellWorkflow } from "./inbox.js"
import { tell } from "./told.js"

const LOADER = "LoraLoaderModelOnly"
const NAME = "lora_name"
const GAP = 40 // pixels between a selected node and what is put beside it

/** A file in the list that a node offers, under the name that it has there: on Windows with backslashes.
 *  @param {HostNode} node
 *  @param {string} file */
function offered(node, file) {
  const values = node.widgets?.find(({ name }) => name === NAME)?.options.values ?? []
  const names = typeof values === "function" ? values() : values
  return names.find((name) => name.replaceAll("\\", "/") === file)
}

/** Where a new node has room: beside the selected one, or in the middle of what is seen.
 *  @param {HostNode} node
 *  @returns {[x: number, y: number]} */
function placeFor(node) {
  const { canvas, ds, selected_nodes } = app.canvas
  const beside = Object.values(selected_nodes ?? {}).at(-1)
  if (beside) return [beside.pos[0] + beside.size[0] + GAP, beside.pos[1]]
  const { width, height } = canvas.getBoundingClientRect()
  return [
    width / 2 / ds.scale - ds.offset[0] - node.size[0] / 2,
    height / 2 / ds.scale - ds.offset[1] - node.size[1] / 2
  ]
}

/** Put a Load LoRA with a file into the graph on screen.
 *  @param {string} file as Load LoRA lists it
 *  @param {string} run whose it is */
export async function apply(file, run) {
  let node = LiteGraph.createNode(LOADER)
  if (!offered(node, file)) {
    await app.refreshComboInNodes()
    node = LiteGraph.createNode(LOADER)
  }
  const name = offered(node, file)
  const widget = node.widgets?.find((each) => each.name === NAME)
  if (!name || !widget) return tell(run, "warn", "Load LoRA does not list this run's LoRA.")
  widget.value = name
  node.pos = placeFor(node)
  app.canvas.graph.add(node)
  app.canvas.selectNode(node)
  tellWorkflow()
  tell(run, "success", "Load LoRA stands in the graph: wire your model through it.", 6)
}
