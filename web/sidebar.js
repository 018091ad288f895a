// The pack's tab in ComfyUI's sidebar.

import { app } from "../../scripts/app.js"
import { datasetsPanel } from "./datasets_panel.js"
import { h } from "./stage.js"

app.registerExtension({
  name: "D3PO.Sidebar",
  async setup() {
    const panel = datasetsPanel()
    app.extensionManager.registerSidebarTab({
      id: "d3po",
      type: "custom",
      title: "D3PO",
      icon: "pi pi-images",
      tooltip: "D3PO",
      render(element) {
        if (panel.element.isConnected) return
        const style = "height: 100%; border: none; overflow: hidden"
        element.append(h("div", { class: "d3po-root", style }, panel.element))
        panel.refresh()
      },
      destroy: () => panel.leave()
    })
  }
})
