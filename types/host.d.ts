// What web/ uses of ComfyUI's frontend and its LiteGraph, and no more.

interface HostWidget {
  name: string
  value: unknown
  hidden?: boolean
  serialize?: boolean
  label?: string
  element?: HTMLTextAreaElement
  options: HostWidgetOptions
  _state?: { options?: HostWidgetOptions }
  callback?: (...values: unknown[]) => unknown
}

interface HostWidgetOptions {
  values?: string[] | (() => string[])
  hidden?: boolean
  serialize?: boolean
  read_only?: boolean
}

interface DOMWidgetOptions {
  serialize?: boolean
  hideOnZoom?: boolean
  socketless?: boolean
  getMinHeight?: () => number
  getValue?: () => string
  setValue?: (value: string) => void
}

type Hook<Result = void> = (this: HostNode, ...values: unknown[]) => Result

interface HostNode {
  id: number
  title: string
  pos: [x: number, y: number]
  size: [width: number, height: number]
  graph: HostGraph | null
  subgraph?: HostGraph
  inputs: { widget?: { name: string } }[]
  outputs: { links: number[] | null }[]
  widgets?: HostWidget[]
  properties: Record<string, unknown>
  hideOutputImages?: boolean
  constructor: { comfyClass?: string; nodeData: NodeDefinition }
  d3po?: import("../web/picker.js").Widget

  addProperty(name: string, value: unknown): void
  addWidget(
    kind: string,
    name: string,
    value: unknown,
    callback: () => void,
    options: HostWidgetOptions
  ): HostWidget
  addDOMWidget(name: string, kind: string, element: HTMLElement, options: DOMWidgetOptions): HostWidget
  removeWidget(widget: HostWidget): void
  findInputSlot(name: string): number
  getInputNode(slot: number): HostNode | null
  isInputConnected(slot: number): boolean
  computeSize(): [width: number, height: number]
  setSize(size: [width: number, height: number]): void
  setDirtyCanvas(foreground: boolean, background: boolean): void

  onConfigure?: Hook
  onGraphConfigured?: Hook
  onConnectionsChange?: Hook
  onDrawBackground?: Hook
  onExecuted?: Hook
  onPropertyChanged?: Hook<boolean | undefined>
  onRemoved?: Hook
}

/** A node's definition by the server; `unused_by` names the methods that have no use for an input. */
interface NodeDefinition {
  input: { optional: Record<string, [kind: unknown, options: { default?: unknown; unused_by?: string[] }]> }
}

interface HostGraph {
  id: string
  extra?: Record<string, unknown>
  subgraphs?: Map<string, HostGraph>
  add(node: HostNode): void
  getLink(id: number): { target_id: number } | undefined
  getNodeById(id: string | number | undefined): HostNode | null | undefined
}

/** A node's result, as a run told it or as the page kept it. */
interface NodeOutput {
  text?: string[]
  warnings?: string[]
  run?: string[]
  stopped?: string[]
  compared?: [a: import("../web/stage.js").Reference, b: import("../web/stage.js").Reference][]
  names?: string[]
  pictures?: import("../web/before_after.js").Pictures[]
  d3po?: import("../web/inbox.js").Told[]
}

interface SavedNode {
  id: number
  type: string
  pos: [x: number, y: number]
  size?: [width: number, height: number]
  flags: object
  order: number
  mode: number
  properties?: { "Node name for S&R"?: string; proxyWidgets?: [node: string, widget: string][] }
  inputs?: SavedInput[]
  outputs?: { name: string; type: string; links: number[] }[]
  widgets_values: unknown[]
}

interface SavedInput {
  name: string
  type: string
  link: number | null
  widget?: { name: string }
}

type SavedLink = [id: number, origin: number, slot: number, target: number, slot: number, type: string]

/** A link inside a subgraph. */
interface InnerLink {
  id: number
  origin_id: number
  origin_slot: number
  target_id: number
  target_slot: number
  type: string
}

interface SavedGraph {
  id: string
  nodes: SavedNode[]
  links: (SavedLink | InnerLink)[]
  last_node_id?: number
  last_link_id?: number
  state?: { lastNodeId: number; lastLinkId: number }
  definitions?: { subgraphs?: SavedGraph[] }
}

type Prompt = Record<string, { class_type: string; inputs: Record<string, unknown> }>

interface ServerEvents {
  "d3po.waiting": import("../web/inbox.js").Shown
  "d3po.closed": import("../web/inbox.js").Closed
  "d3po.learning": import("../web/learning.js").Learning
  "d3po.kept": { dataset: string; sets: number }
  executed: { prompt_id: string; node: string; output?: NodeOutput }
  execution_success: { prompt_id: string }
  execution_error: { prompt_id: string }
  execution_interrupted: { prompt_id: string }
  execution_cached: { prompt_id?: string; nodes: string[] }
  reconnected: unknown
  status: { exec_info?: { queue_remaining: number } } | null
}

interface Toast {
  severity: "error" | "success" | "warn"
  summary: string
  detail: string
  life: number
}

interface Extension {
  name: string
  getCustomWidgets?(): Record<
    string,
    (node: HostNode, name: string) => { widget: HostWidget; minWidth: number; minHeight: number }
  >
  init?(): Promise<void>
  beforeConfigureGraph?(workflow: SavedGraph): void
  setup?(): void | Promise<void>
  afterConfigureGraph?(): Promise<void>
  nodeCreated?(node: HostNode): void
  onNodeOutputsUpdated?(outputs: Record<string, NodeOutput>): void
}

interface SidebarTab {
  id: string
  type: "custom"
  icon: string
  title: string
  tooltip: string
  render(place: HTMLElement): void
  destroy(): void
}

interface Question {
  title: string
  message: string
  type: "delete"
  itemList: string[]
}

type OfTheMouse = "processMouseWheel" | "processMouseDown" | "processMouseMove" | "processMouseUp"

interface HostCanvas extends Record<OfTheMouse, (event: Event) => void> {
  graph: HostGraph
  canvas: HTMLCanvasElement
  ds: { scale: number; offset: [x: number, y: number] }
  selected_nodes?: Record<string, HostNode>
  selectNode(node: HostNode): void
  setDirty(nodes: boolean, ground: boolean): void
}

interface App {
  graph: HostGraph
  rootGraph?: HostGraph
  canvas: HostCanvas
  extensionManager: {
    registerSidebarTab(tab: SidebarTab): void
    command: { execute(id: string): Promise<void> }
    dialog: { confirm(question: Question): Promise<boolean | null> }
    toast: { add(toast: Toast): void }
    setting: { get(name: string): unknown }
    workflow?: { activeWorkflow?: { changeTracker?: { captureCanvasState?(): void; checkState?(): void } } }
  }
  queuePrompt(number: number, batch: number): Promise<unknown>
  refreshComboInNodes(): Promise<void>
  registerExtension(extension: Extension): void
}

interface Api {
  apiURL(route: string): string
  fetchApi(route: string, options?: RequestInit): Promise<Response>
  interrupt(promptId: string): Promise<void>
  queuePrompt(number: number, prompt: { output: Prompt; workflow?: SavedGraph }): Promise<unknown>
  addEventListener<Name extends keyof ServerEvents>(
    name: Name,
    heard: (event: CustomEvent<ServerEvents[Name]>) => void
  ): void
}

declare const LiteGraph: {
  vueNodesMode?: boolean
  createNode(type: string): HostNode
  registered_node_types: Record<string, { nodeData: NodeDefinition }>
}

declare module "*/scripts/api.js" {
  export const api: Api
}

declare module "*/scripts/app.js" {
  export const app: App
}

declare module "*/scripts/widgets.js" {
  export const ComfyWidgets: {
    STRING(
      node: HostNode,
      name: string,
      definition: ["STRING", { multiline: boolean }],
      app: App
    ): { widget: HostWidget }
  }
}
