// Workflows from before D3PO Train Settings, whose train steps held every setting: they get such a node when
// they are opened.

import { app } from "../../scripts/app.js"

const TRAIN_STEP = "D3POTrainStep"
const SETTINGS = "D3POTrainSettings"
const BELOW = 460 // from the train step's place to that of its settings
const WIDTH = 360

// the old train step's widgets in the order in which their values were saved
const FIRST = [
  "epochs",
  "sets_per_update",
  "learning_rate",
  "beta",
  "clip",
  "weighting",
  "reference",
  "guidance",
  "step_fraction",
  "rank",
  "alpha",
  "targets",
  "weight_decay",
  "max_grad_norm",
  "candidates_per_pass",
  "seed",
  "save_every",
  "dpo_beta",
  "draws_per_set",
  "method"
]
const EITHER = ["learn_from", "caption_dropout"]
/** @type {Record<string, string[]>} */
const OF_METHOD = {
  "Diffusion-DPO": EITHER,
  IPO: EITHER,
  "DPO with label smoothing": ["label_smoothing", ...EITHER],
  "DPO with winner anchor": ["winner_weight", ...EITHER],
  "Diffusion-SDPO": ["winner_share", ...EITHER],
  "beta-DPO": ["adaptation", "adaptation_bound", ...EITHER],
  MaPO: ["mapo_beta", "mapo_snr", ...EITHER],
  "Diffusion-KTO": EITHER,
  DDPO: ["ratio_clip"],
  DPOK: ["kl_weight", "ratio_clip"],
  "reward-weighted": ["reward_beta", ...EITHER],
  supervised: EITHER
}
const LAST = [
  "adapter",
  "dropout",
  "optimizer",
  "schedule",
  "warmup",
  "ema",
  "window_start",
  "window_end",
  "evaluate_every",
  "patience",
  "stop_kl"
]
const SOCKETS = ["model", "preferences", "lora", "held_out", "settings"]
const KEPT = ["method", "strength", "epochs", "rank", "targets"]

/** @typedef {NodeDefinition["input"]["optional"]} Specs */

/** @type {(name: string) => string} */
const bare = (name) => name.replace(/^method\./, "")
/** @type {(node: SavedNode) => boolean} */
const isOld = ({ type, widgets_values: saved }) => type === TRAIN_STEP && typeof saved?.[0] === "number"

/** The old train step's values by name.
 *  @param {SavedNode} node
 *  @returns {Record<string, unknown>} */
function valuesOf({ widgets_values: saved }) {
  const method = String(saved[FIRST.indexOf("method")])
  const names = [...FIRST, ...(OF_METHOD[method] ?? []), ...LAST]
  return Object.fromEntries(saved.map((value, place) => [names[place], value]))
}

/** @type {(link: SavedLink | InnerLink) => number} */
const idOf = (link) => (Array.isArray(link) ? link[0] : link.id)

/** Let a saved link end elsewhere. The root's are arrays, a subgraph's are objects.
 *  @param {SavedGraph} graph
 *  @param {number | null} id
 *  @param {number} node
 *  @param {number} slot */
function lead(graph, id, node, slot) {
  const link = graph.links.find((each) => idOf(each) === id)
  if (Array.isArray(link)) [link[3], link[4]] = [node, slot]
  else if (link) Object.assign(link, { target_id: node, target_slot: slot })
}

/** Bring a saved train step into its new form; the settings node that it needs, not yet wired.
 *  @param {SavedGraph} graph
 *  @param {SavedNode} node
 *  @param {number} id of the settings node
 *  @param {Specs} specs */
function split(graph, node, id, specs) {
  const values = valuesOf(node)
  const moved = (node.inputs ?? []).filter(({ widget, name }) => widget && !KEPT.includes(name))
  /** @type {SavedNode & { size: [number, number], inputs: SavedInput[] }} */
  const settings = {
    id,
    type: SETTINGS,
    pos: [node.pos[0], node.pos[1] + BELOW],
    size: [node.size?.[0] ?? WIDTH, 0],
    flags: {},
    order: 0,
    mode: 0,
    properties: { "Node name for S&R": SETTINGS },
    outputs: [{ name: "settings", type: "D3PO_SETTINGS", links: [] }],
    inputs: moved
      .filter(({ link }) => link != null)
      .map((input) => ({ ...input, name: bare(input.name), widget: { name: bare(input.name) } })),
    widgets_values: Object.entries(specs).map(([name, [, { default: usual }]]) => values[name] ?? usual)
  }
  settings.inputs.forEach(({ link }, slot) => {
    lead(graph, link, id, slot)
  })
  const inputs = (node.inputs ?? []).filter((input) => !moved.includes(input))
  inputs.splice(SOCKETS.length - 1, 0, { name: "settings", type: "D3PO_SETTINGS", link: null })
  inputs.forEach(({ link }, slot) => {
    if (link != null) lead(graph, link, node.id, slot)
  })
  node.inputs = inputs
  node.size = [settings.size[0], 0]
  node.widgets_values = [values.method ?? "D3PO", "paper", values.epochs, values.rank, values.targets]
  return settings
}

/** Wire a saved settings node to its train step.
 *  @param {SavedGraph} graph
 *  @param {SavedNode} settings
 *  @param {SavedNode} node
 *  @param {number} id of the link */
function wire(graph, settings, node, id) {
  const inputs = node.inputs ?? []
  const slot = inputs.findIndex(({ name }) => name === "settings")
  inputs[slot].link = id
  settings.outputs?.[0].links.push(id)
  const [origin, kind] = [settings.id, "D3PO_SETTINGS"]
  const areArrays = graph.links.length ? Array.isArray(graph.links[0]) : "last_link_id" in graph
  graph.links.push(
    areArrays
      ? [id, origin, 0, node.id, slot, kind]
      : { id, origin_id: origin, origin_slot: 0, target_id: node.id, target_slot: slot, type: kind }
  )
}

/** Settings that a subgraph's own node shows are now those of the settings node inside.
 *  @param {SavedGraph[]} graphs
 *  @param {SavedGraph} subgraph
 *  @param {SavedNode} node
 *  @param {SavedNode} settings */
function promote(graphs, subgraph, node, settings) {
  for (const host of graphs.flatMap(({ nodes }) => nodes).filter(({ type }) => type === subgraph.id)) {
    for (const entry of host.properties?.proxyWidgets ?? []) {
      if (String(entry[0]) !== String(node.id) || KEPT.includes(entry[1])) continue
      entry[0] = String(settings.id)
      entry[1] = bare(entry[1])
    }
  }
}

/** @type {(graph: SavedGraph) => SavedGraph[]} */
const within = (graph) => [graph, ...(graph.definitions?.subgraphs ?? []).flatMap(within)]

/** Bring a saved workflow into the new form. specs are the settings node's inputs in their order.
 *  @param {SavedGraph} workflow
 *  @param {Specs} specs */
function renew(workflow, specs) {
  const graphs = within(workflow).filter(({ nodes }) => nodes)
  if (!graphs.some(({ nodes }) => nodes.some(isOld))) return
  /** @type {(numbers: unknown[]) => number} */
  const most = (numbers) => Math.max(0, ...numbers.map(Number).filter(Number.isFinite))
  let lastNode = most([
    workflow.last_node_id ?? 0,
    ...graphs.flatMap(({ nodes }) => nodes.map(({ id }) => id))
  ])
  let lastLink = most([workflow.last_link_id ?? 0, ...graphs.flatMap(({ links }) => links?.map(idOf) ?? [])])
  for (const graph of graphs) {
    graph.links ??= []
    for (const node of graph.nodes.filter(isOld)) {
      const settings = split(graph, node, ++lastNode, specs)
      wire(graph, settings, node, ++lastLink)
      graph.nodes.push(settings)
      promote(graphs, graph, node, settings)
    }
  }
  for (const graph of graphs) {
    if ("last_node_id" in graph) Object.assign(graph, { last_node_id: lastNode, last_link_id: lastLink })
    if (graph.state) Object.assign(graph.state, { lastNodeId: lastNode, lastLinkId: lastLink })
  }
}

app.registerExtension({
  name: "D3PO.OldWorkflows",
  beforeConfigureGraph(workflow) {
    renew(workflow, LiteGraph.registered_node_types[SETTINGS].nodeData.input.optional)
  }
})
