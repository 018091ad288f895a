// The tab "D3PO" in the sidebar: what is on disk, at a glance.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { datasetsPanel } from "./datasets_panel.js"
import { tr } from "./language.js"
import { runsPanel } from "./runs_panel.js"
import { h } from "./stage.js"

/**
 * @typedef {object} SidePanel a section of the tab
 * @property {HTMLElement} element
 * @property {() => Promise<void>} refresh show what is on disk now
 * @property {() => void} leave it is no longer seen
 */

/** @type {[title: string, make: () => SidePanel][]} */
const PANELS = [
  ["Runs", runsPanel],
  ["Datasets", datasetsPanel]
]

class Sidebar {
  #shown = 0

  constructor() {
    this.panels = PANELS.map(([, make]) => make())
    this.tabs = PANELS.map(([title], i) =>
      h("button", { type: "button", textContent: title, onclick: () => this.#choose(i) })
    )
    this.root = h(
      "div",
      {
        class: "d3po-root d3po-sidebar",
        onkeydown: (event) => {
          const { key, ctrlKey, metaKey } = event
          if (key !== "Escape" && !ctrlKey && !metaKey) event.stopPropagation() // else Delete takes nodes
        }
      },
      h("div", { class: "d3po-sections", role: "group", "aria-label": "What to look at" }, ...this.tabs),
      ...this.panels.map((panel) => panel.element)
    )
    this.#draw()
  }

  get panel() {
    return this.panels[this.#shown]
  }

  #draw() {
    this.panels.forEach((panel, i) => {
      panel.element.hidden = i !== this.#shown
      this.tabs[i].setAttribute("aria-pressed", String(i === this.#shown))
    })
  }

  /** @param {number} which panel */
  #choose(which) {
    if (which === this.#shown) return
    this.panel.leave()
    this.#shown = which
    this.#draw()
    this.panel.refresh()
  }

  /** ComfyUI shows the tab, or has drawn it anew.
   *  @param {HTMLElement} place */
  show(place) {
    if (this.root.parentElement === place) return
    place.append(this.root)
    this.panel.refresh()
  }

  hide() {
    this.panel.leave()
    this.root.remove()
  }

  /** A run has ended. */
  refresh() {
    if (this.root.isConnected) this.panel.refresh()
  }
}

app.registerExtension({
  name: "D3PO.Sidebar",
  async init() {
    const href = new URL("sidebar.css", import.meta.url).href
    document.head.append(h("link", { rel: "stylesheet", href }))
  },
  setup() {
    const sidebar = new Sidebar()
    app.extensionManager.registerSidebarTab({
      id: "d3po",
      type: "custom",
      icon: "pi pi-thumbs-up",
      title: "D3PO",
      tooltip: tr("D3PO: what you have trained and judged"),
      render: (place) => sidebar.show(place),
      destroy: () => sidebar.hide()
    })
    api.addEventListener("execution_success", () => sidebar.refresh())
  }
})
