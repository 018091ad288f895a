// A run in the sidebar: its pictures and steps, and behind them its figures and what can be done with it.

import { app } from "../../scripts/app.js"
import { button } from "./answers.js"
import { apply } from "./apply_lora.js"
import { BeforeAfter } from "./before_after.js"
import { moment, tr } from "./language.js"
import { Place } from "./place.js"
import { factsOf, progressOf, sizeOf, steps } from "./run_words.js"
import { address, h } from "./stage.js"
import { request, tell } from "./told.js"

/** @typedef {import("./before_after.js").Pictures} Pictures */
/** @typedef {import("./run_words.js").Run} Run */
/** @typedef {import("./stage.js").Reference} Reference */

const UNSEEN = "This run has learned without a VAE. Wire one to the train step to see what pictures become."
const ELSEWHERE =
  "Saved as {file}. For A1111, Forge, kohya or diffusers wire D3PO Save LoRA, which asks " +
  "your model how they name its layers."
const GOES =
  "The run is deleted for good as it is now, with its checkpoints and pictures, and its LoRA goes from " +
  "Load LoRA's list."

/** Words that are nobody's to translate.
 *  @param {string | number} said */
const plain = (said) => document.createTextNode(String(said))
/** @param {Reference} reference
 *  @param {string} alt */
const lazy = (reference, alt) =>
  h("img", { loading: "lazy", decoding: "async", alt: tr(alt), src: address(reference) })

/** Show a run's pictures as large as the window.
 *  @param {string} name
 *  @param {Pictures} pictures */
function enlarge(name, pictures) {
  const opener = /** @type {HTMLElement | null} */ (document.activeElement)
  const shown = new BeforeAfter()
  const close = button("expand", "", "close", () => place.expand())
  const title = h("span", { class: "d3po-count", dir: "auto" }, plain(name))
  const head = h("div", { class: "d3po-head" }, title, h("span", { class: "d3po-space" }), close)
  const root = h("div", { class: "d3po-root", tabIndex: -1 }, head, shown.element)
  const place = new Place(root, "Pictures before and now")
  place.dialog.addEventListener("close", () => opener?.focus())
  place.expand()
  shown.take(pictures)
}

export class RunCard {
  /** @type {Run | undefined} */
  #run
  #changed

  /** @param {() => Promise<void>} changed something was done with a run */
  constructor(changed) {
    this.#changed = changed
    this.summary = h("summary")
    this.body = h("div", { class: "d3po-run-body" })
    this.element = h("details", { class: "d3po-run", ontoggle: () => this.#fill() }, this.summary, this.body)
  }

  /** @param {Run} run */
  show(run) {
    if (JSON.stringify(run) === JSON.stringify(this.#run)) return
    this.#run = run
    this.summary.replaceChildren(this.#thumbs(run), this.#about(run))
    const focused = this.body.contains(document.activeElement)
    this.body.replaceChildren()
    this.#fill()
    if (focused) this.summary.focus()
  }

  /** @param {Run} run */
  #thumbs({ pictures }) {
    const pair = pictures && [pictures.before[0], pictures.now[0]]
    if (!pair?.every(Boolean)) return h("span", { class: "d3po-thumbs d3po-none" }, "no pictures")
    return h("span", { class: "d3po-thumbs" }, lazy(pair[0], "before"), lazy(pair[1], "now"))
  }

  /** @param {Run} run */
  #about(run) {
    const facts = run.problem ? [run.problem] : [progressOf(run), moment(new Date(1000 * run.changed))]
    const kind = run.problem ? "d3po-problem" : "d3po-fact"
    return h(
      "span",
      { class: "d3po-about" },
      h("b", { dir: "auto" }, plain(run.name)),
      ...facts.map((said) => h("span", { class: kind, dir: "auto" }, plain(said)))
    )
  }

  /** What is seen only once a person has opened it. */
  #fill() {
    const run = this.#run
    if (!run || !this.element.open || this.body.childElementCount) return
    const whole = () => [this.#pictures(run), this.#facts(run)]
    const damaged = () => [h("p", { class: "d3po-problem", dir: "auto" }, plain(run.problem))]
    this.body.append(...(run.problem ? damaged() : whole()), ...this.#actions(run))
  }

  /** @param {Run} run */
  #pictures({ name, pictures }) {
    if (!pictures) return h("p", { class: "d3po-unseen", textContent: UNSEEN })
    const pairs = pictures.before.map((before, i) =>
      h(
        "button",
        { type: "button", class: "d3po-pair", onclick: () => enlarge(name, pictures) },
        lazy(before, "before"),
        lazy(pictures.now[i], "now")
      )
    )
    pairs.forEach((pair, i) => {
      pair.title = pictures.prompts[i]
    })
    const caption = h("figcaption", { textContent: "before and now, of the same noise" })
    return h("figure", { class: "d3po-pairs" }, ...pairs, caption)
  }

  /** @param {Run} run */
  #facts(run) {
    const pairs = factsOf(run).flatMap(([name, said, title]) => {
      const told = h("dd", { dir: "auto" }, plain(said))
      told.title = title
      return [h("dt", { textContent: name }), told]
    })
    return h("dl", {}, ...pairs)
  }

  /** @param {Run} run */
  #actions(run) {
    const { name, lora, rounds: made, problem } = run
    const branch = this.#branching(run)
    /** @param {string} label
     *  @param {string} title
     *  @param {() => unknown} work */
    const act = (label, title, work) => {
      const each = button(label.split(" ")[0], "", label, async () => {
        each.disabled = true
        await work()
        each.disabled = false
      })
      each.title = tr(title)
      return each
    }
    const actions = []
    if (lora) {
      actions.push(act("apply", "Put Load LoRA with this run's LoRA into the graph", () => apply(lora, name)))
      actions.push(
        act("export", "Write a LoRA file that later rounds leave as it is", () => this.#export(name))
      )
    }
    if (!problem) actions.push(act("branch", "Start a new run from this one", () => this.#toggle(branch)))
    if (made && !problem)
      actions.push(
        act("undo last round", "Put the run back to where its last round began", () => this.#undo(name))
      )
    actions.push(act("delete", "Delete this run for good", () => this.#delete(run)))
    return [h("div", { class: "d3po-actions" }, ...actions), branch]
  }

  /** The name of a new run, and the state that it begins from.
   *  @param {Run} run */
  #branching({ name, step, best_step, checkpoints }) {
    const new_name = h("input", {
      type: "text",
      required: true,
      maxLength: 100,
      "aria-label": "Name of the new run"
    })
    new_name.placeholder = tr("Name of the new run")
    /** @param {string} value
     *  @param {string} said */
    const option = (value, said) => h("option", { value }, plain(said))
    const from = h(
      "select",
      { "aria-label": "Where it begins" },
      option("latest", tr("from the latest state, step {n}", { n: step })),
      ...(best_step === null ? [] : [option("best", tr("from the best state, step {n}", { n: best_step }))]),
      ...checkpoints.filter((n) => n !== step).map((n) => option(String(n), tr("from step {n}", { n })))
    )
    return h(
      "form",
      {
        class: "d3po-branching",
        hidden: true,
        onsubmit: (event) => {
          event.preventDefault()
          this.#branch(name, new_name.value.trim(), from.value)
        }
      },
      new_name,
      from,
      h("button", { textContent: "start the branch" })
    )
  }

  /** @param {HTMLFormElement} form */
  #toggle(form) {
    form.hidden = !form.hidden
    if (!form.hidden) form.querySelector("input")?.focus()
  }

  /** @param {string} path
   *  @param {{ run: string } & Record<string, string>} body */
  async #do(path, body) {
    const said = await request(body.run, path, body)
    if (said?.told) tell(body.run, "success", said.told)
    await this.#changed()
  }

  /** @param {string} run
   *  @param {string} new_name
   *  @param {string} checkpoint */
  #branch = (run, new_name, checkpoint) => this.#do("/d3po/runs/branch", { run, new_name, checkpoint })

  /** @param {string} run */
  #undo = (run) => this.#do("/d3po/undo", { run })

  /** @param {string} run */
  async #export(run) {
    const said = await request(run, "/d3po/runs/export", { run })
    if (said) tell(run, "success", tr(ELSEWHERE, { file: said.file ?? "" }), 30)
  }

  /** @param {Run} run */
  async #delete({ name, step, problem, size, lora, as_it_is }) {
    const goes = [
      problem ? name : `${name}, ${steps(step)}, ${sizeOf(size)}`,
      ...(lora ? [`loras/${lora}`] : [])
    ]
    const sure = await app.extensionManager.dialog.confirm({
      title: tr("Delete this run?"),
      message: tr(GOES),
      type: "delete",
      itemList: goes
    })
    if (sure) await this.#do("/d3po/runs/delete", { run: name, confirm: as_it_is })
  }
}
