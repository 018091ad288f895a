// The widgets' words in the language of ComfyUI's page, from locales/LANGUAGE/main.json.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

/** By what they are in English.
 *  @type {Record<string, string>} */
let known = {}

/** A text in the page's language, or as it is where it has no translation. {name} in it stands for a value.
 *  @param {string} text
 *  @param {Record<string, string | number>} values */
export function tr(text, values = {}) {
  let said = known[text] ?? text
  for (const [name, value] of Object.entries(values)) said = said.replace(`{${name}}`, String(value))
  return said
}

/** The language of ComfyUI's page, as "en" or "zh-TW". */
export const language = () => String(app.extensionManager.setting.get("Comfy.Locale") ?? "en")

app.registerExtension({
  name: "D3PO.Language",
  async init() {
    if (language() === "en") return
    const answer = await api.fetchApi("/i18n").catch(() => null)
    known = (await answer?.json().catch(() => null))?.[language()]?.d3po ?? {}
  }
})
