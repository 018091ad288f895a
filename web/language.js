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

/** Words for one, or for how many there are, which is {n} in them.
 *  @param {number} n
 *  @param {string} one
 *  @param {string} many */
export const counted = (n, one, many) => tr(n === 1 ? one : many, { n })

/** A day as the page's language writes it.
 *  @param {Date} date
 *  @param {Intl.DateTimeFormatOptions} rest what is said beside the day */
export const day = (date, rest = {}) => date.toLocaleString(language(), { dateStyle: "medium", ...rest })

/** A day and the time of day.
 *  @param {Date} date */
export const moment = (date) => day(date, { timeStyle: "short" })

app.registerExtension({
  name: "D3PO.Language",
  async init() {
    if (language() === "en") return
    const answer = await api.fetchApi("/i18n").catch(() => null)
    known = (await answer?.json().catch(() => null))?.[language()]?.d3po ?? {}
  }
})
