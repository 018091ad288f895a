// What of an example workflow is seen first: ComfyUI shows all of it, too small to read. A workflow says it
// in its `extra`, once; saved again, it has the view that it was left with.

import { app } from "../../scripts/app.js"
import { root } from "./inbox.js"

const KEY = "d3po_first_view"
const SHARE = 0.94 // of the canvas that it fills

/** Let this part of the graph fill the canvas.
 *  @param {number[]} part x, y, width, height */
function lookAt([x, y, width, height]) {
  const { canvas, ds } = app.canvas
  const [wide, high] = [canvas.clientWidth, canvas.clientHeight]
  ds.scale = Math.min(1, (SHARE * wide) / width, (SHARE * high) / height)
  ds.offset[0] = wide / ds.scale / 2 - (x + width / 2)
  ds.offset[1] = high / ds.scale / 2 - (y + height / 2)
  app.canvas.setDirty(true, true)
}

app.registerExtension({
  name: "D3PO.FirstView",
  async afterConfigureGraph() {
    const extra = root().extra ?? {}
    const part = extra[KEY]
    if (!Array.isArray(part) || part.length !== 4 || !part.every(Number.isFinite)) return
    delete extra[KEY]
    // after ComfyUI's own look at all of it
    requestAnimationFrame(() => requestAnimationFrame(() => lookAt(part)))
  }
})
