// The picker's element: shows one question, takes its answer, shows the next.

import { button, buttonsFor, keysFor } from "./answers.js"
import { FIRST, MODES, SECOND, answered, ask, judgement, logOf, mirrored, newest, undone } from "./judging.js"
import { Stage, h, picture } from "./stage.js"
import { KEYS, KEYS_ALWAYS, MOST_SUMMED, byWins, labelOf, saidOf, summaryOf } from "./words.js"

const LOOK_AHEAD = 3 // questions whose images are fetched before they are asked

/** The picker's user interface on a `model`:
 *
 *  picks       the Picks
 *  sets()      the sets there are to judge, oldest first
 *  settings    {mode, seed, same_place, continue_when_done}, kept with the node
 *  changed(finished)   picks or settings were changed; `finished` is the set entry that this answer completed
 *  run()       continue with the picks there are
 *  cancel()    stop the run that waits
 */
export class View {
  #set = null // the set on screen
  #at = 0 // the question on screen
  #asked = { questions: [], todo: 0 }
  #ready = false // the question's images are drawn
  #flipped = false
  #newestRun = null // the run that showed the newest set
  #drawn = Promise.resolve()
  #acts = {
    choose: (pane) => this.#choose(pane),
    answer: (answer) => this.answer(answer),
    flip: (on) => this.#flip(on),
    step: (by) => this.stage.focus(Math.max(this.stage.focused + by, 0))
  }

  constructor(model) {
    this.model = model
    this.stage = new Stage((index) => this.#choose(index))
    this.#build()
    this.refresh()
  }

  /** Settles when what is on screen is drawn. */
  get drawn() {
    return this.#drawn
  }

  #build() {
    const part = (name, properties = {}, ...children) => (this[name] = h("div", { class: `d3po-${name}`, ...properties }, ...children))
    this.mode = h("select", { class: "d3po-mode", title: "How candidates are judged", "aria-label": "How candidates are judged",
      onchange: () => { this.#configure({ mode: this.mode.value }); this.root.focus() } },
      ...Object.entries(MODES).map(([value, { label }]) => h("option", { value, textContent: label })))
    this.progress = h("progress", { "aria-label": "Answered questions of this set" })
    this.count = h("span", { class: "d3po-count" })
    this.status = h("div", { class: "d3po-status", role: "status", "aria-live": "polite" })
    this.slider = h("input", { type: "range", class: "d3po-slider", min: 0, "aria-label": "Question",
      oninput: () => this.#goTo(Number(this.slider.value)) })
    this.carryOn = h("input", { type: "checkbox", onchange: () => this.#configure({ continue_when_done: this.carryOn.checked }) })
    part("head", {}, this.mode, this.count, this.progress, button("together", "O", "same place", () => this.#toggleTogether()),
      button("expand", "E", "expand", () => this.#expand()), button("keys", "?", "keys", () => this.#toggleKeys()))
    part("banner", { hidden: true }, h("span", { textContent: "The run waits for your picks." }),
      button("cancel", "", "cancel the run", () => this.model.cancel()))
    part("help", { hidden: true })
    part("message", { hidden: true })
    part("answers")
    part("foot", {}, button("undo", "U", "undo", () => this.undo()), button("previous", "[", "‹", () => this.#goTo(this.#at - 1)),
      this.slider, button("next", "]", "›", () => this.#goTo(this.#at + 1)),
      h("label", { title: "After the last answer queue the run again by itself" }, this.carryOn, "continue when done"))
    this.root = h("div", { class: "d3po-root", tabIndex: 0, role: "group", "aria-label": "Pair preference picker",
      title: "", "data-capture-wheel": "true", onkeydown: (event) => this.#key(event), onkeyup: (event) => this.#keyUp(event) },
      this.head, this.banner, this.help, this.message, this.stage.element, this.answers, this.status, this.foot)
    this.place = h("div", { class: "d3po-place" }, this.root)
    this.dialog = h("dialog", { class: "d3po-dialog", "aria-label": "Pair preference picker, expanded",
      onkeydown: (event) => event.stopPropagation(), onkeyup: (event) => event.stopPropagation(),
      onclose: () => this.#collapse() })
  }

  /** Show what there is to do now, after the picks, the sets or the settings have changed. */
  refresh() {
    const sets = this.model.sets()
    const now = sets.find((entry) => this.#isShown(entry)) ?? sets.find((entry) => entry.set === this.#set?.set)
    const begun = now && this.model.picks.of(now.set)?.open
    const arrived = sets.at(-1)?.prompt !== this.#newestRun
    this.#newestRun = sets.at(-1)?.prompt
    if (now && (begun || !arrived)) this.#show(now, this.#question ? this.#at : null)
    else this.#next(sets)
  }

  /** Forget what was on screen: the picks are others now. */
  reset() {
    this.#set = null
    this.refresh()
  }

  /** Go on with a set that was begun, else with the newest run's first set without picks. */
  #next(sets = this.model.sets()) {
    const { picks } = this.model
    const open = sets.filter((entry) => !picks.finished(entry.set))
    const newest = open.filter((entry) => entry.prompt === open.at(-1).prompt)
    this.#show(open.find((entry) => picks.of(entry.set)) ?? newest[0]
      ?? sets.find((entry) => this.#isShown(entry)) ?? this.#set ?? sets.at(-1) ?? null)
  }

  #show(entry, at = null) {
    const kept = entry !== null && entry.set === this.#set?.set
    this.#set = entry
    if (entry) {
      this.#asked = ask(this.model.settings.mode, entry.candidates, this.#log(), this.#keyOf(entry))
      const first = this.#asked.questions.findIndex((question) => question.answer === undefined)
      this.#at = at ?? (first >= 0 ? first : this.#asked.questions.length)
    }
    this.#drawn = this.#draw(kept)
  }

  #isShown(entry) {
    return entry.set === this.#set?.set && entry.node === this.#set?.node
  }

  #log() {
    return logOf(this.model.picks.of(this.#set.set))
  }

  #keyOf(entry) {
    return `${this.model.settings.seed} ${entry.set}`
  }

  get #question() {
    return this.#set ? this.#asked.questions[this.#at] : undefined
  }

  /** The candidates of the question on screen, in the order of their panes. */
  #candidates(question) {
    if (question.kind === "best") return question.candidates
    if ("candidate" in question) return [question.candidate]
    const pair = [question.a, question.b]
    return mirrored(question.a, question.b, this.#keyOf(this.#set)) ? pair.reverse() : pair
  }

  async #draw(kept) {
    const { settings, picks } = this.model
    const question = this.#question
    const sets = this.model.sets()
    const focused = this.root.contains(document.activeElement)
    this.#ready = false
    this.#flipped = false
    this.mode.value = settings.mode
    this.carryOn.checked = settings.continue_when_done
    this.root.dataset.kind = question?.kind ?? (this.#set ? "done" : "empty")
    this.banner.hidden = !this.#set?.waiting
    this.#tell(picks.problem || (this.#set ? "" : "Press Run: the candidates will be shown here."))
    this.#drawProgress(sets)
    this.#drawAnswers(question, sets)
    if (focused) this.#holdFocus()
    if (!this.help.hidden) this.#drawKeys()
    if (!this.#set) return this.stage.clear()
    const { set, candidates: count } = this.#set
    const candidates = question ? this.#candidates(question) : byWins(picks.of(set), count).slice(0, MOST_SUMMED)
    const labels = candidates.map(question ? (_, i) => labelOf(question, i, candidates.length)
      : (candidate) => summaryOf(picks.of(set), count, candidate))
    try {
      const drawn = await this.stage.show(candidates.map((candidate) => this.#set.images[candidate]), labels, kept)
      if (focused) this.#holdFocus()
      if (!drawn) return
    } catch {
      if (set === this.#set?.set) {
        this.#tell("These images are gone from the server. Run again: the same candidates come back, and your answers are kept.")
      }
      return
    }
    this.#ready = true
    this.stage.mark(question ? this.#chosen(question, candidates) : [])
    this.#stack()
    this.#lookAhead()
  }

  /** Keys go on where the element that had the focus is gone or disabled. */
  #holdFocus() {
    const now = document.activeElement
    if (now === document.body || now?.disabled) this.root.focus({ preventScroll: true })
  }

  #tell(text) {
    this.message.hidden = !text
    this.message.textContent = text
  }

  #drawProgress(sets) {
    const { questions, todo } = this.#asked
    const done = questions.filter((question) => question.answer !== undefined).length
    const place = sets.findIndex((entry) => this.#isShown(entry))
    this.count.textContent = this.#set ? `${done} done, ${todo && this.model.settings.mode === "ranking" ? "at most " : ""}${todo} to do`
      + (sets.length > 1 ? ` · set ${place + 1} of ${sets.length}` : "") : ""
    this.progress.max = Math.max(done + todo, 1)
    this.progress.value = this.#set ? done : 0
    this.slider.max = Math.max(questions.length - 1, 0)
    this.slider.value = this.#at
    this.slider.disabled = !this.#set || questions.length < 2
    this.root.querySelector(".d3po-undo").disabled = !this.#set || !undone(this.model.settings.mode, this.#log())
    this.root.querySelector(".d3po-previous").disabled = !this.#set || this.#at <= 0
    this.root.querySelector(".d3po-next").disabled = !this.#set || this.#at >= questions.length - 1
  }

  #drawAnswers(question, sets) {
    if (question) {
      if (this.answers.dataset.kind !== question.kind) this.answers.replaceChildren(...buttonsFor(question.kind, this.#acts))
      this.answers.dataset.kind = question.kind
      for (const each of this.answers.querySelectorAll("[data-answer]"))
        each.setAttribute("aria-pressed", String(each.dataset.answer === String(question.answer)))
      const of = this.model.settings.mode === "ranking" ? "" : ` of ${this.#asked.questions.length}`
      const said = saidOf(question)
      this.status.textContent = `Question ${this.#at + 1}${of}${said && ` · answered: ${said}`}`
      return
    }
    delete this.answers.dataset.kind
    this.answers.replaceChildren()
    if (!this.#set) return void (this.status.textContent = "")
    const open = sets.filter((entry) => !this.model.picks.finished(entry.set)).length
    this.status.textContent = "This set is judged." + (open ? ` ${open} more to judge.` : "")
    this.answers.append(button("review", "[", "look again", () => this.#goTo(this.#asked.questions.length - 1)))
    if (open) this.answers.append(button("onward", "}", "next set", () => this.#next()))
    else this.answers.append(button("continue", "Enter", "continue the run", () => this.model.run(this.#set)))
  }

  /** Which panes the question's answer chose. */
  #chosen(question, candidates) {
    const { answer } = question
    const winner = question.kind === "best" ? answer : { [FIRST]: question.a, [SECOND]: question.b }[answer]
    return candidates.flatMap((candidate, i) => (candidate === winner ? [i] : []))
  }

  #lookAhead() {
    const { questions } = this.#asked
    for (const question of questions.slice(this.#at + 1, this.#at + 1 + LOOK_AHEAD))
      for (const candidate of this.#candidates(question)) picture(this.#set.images[candidate])
    if (questions.length - this.#at > LOOK_AHEAD) return
    // Of a ranking the next pairs are not known yet, nor which set comes after this one: its first ones are likely.
    const others = this.model.sets().filter((entry) => entry !== this.#set && !this.model.picks.finished(entry.set))
    for (const image of [...this.#set.images.slice(0, 16), ...others.slice(0, LOOK_AHEAD).flatMap((entry) => entry.images.slice(0, 4))])
      picture(image)
  }

  // --- answers ---

  #choose(index) {
    const question = this.#question
    if (!question || !this.#ready || "candidate" in question) return
    const candidate = this.#candidates(question)[index]
    if (candidate === undefined) return
    this.answer(question.kind === "best" ? candidate : candidate === question.a ? FIRST : SECOND)
  }

  /** Answer the question on screen and show the next. Nothing happens while its images are not drawn yet. */
  answer(answer) {
    if (!this.#question || !this.#ready || this.model.picks.problem) return
    const wasFinished = this.model.picks.finished(this.#set.set)
    const again = this.#question.answer !== undefined
    const at = this.#at
    this.#keep(answered(this.model.settings.mode, this.#log(), this.#question, answer))
    const entry = this.#set
    const finished = this.model.picks.finished(entry.set)
    if (finished && !wasFinished) this.#next()
    // Whoever went back to a question goes on with the one after it.
    else this.#show(entry, again && finished ? at + 1 : null)
    this.model.changed(finished && !wasFinished ? entry : null)
  }

  /** Take the newest answer of the set on screen back, and ask it again. */
  undo() {
    const { mode } = this.model.settings
    const log = this.#set && this.#log()
    const before = log && undone(mode, log)
    if (!before) return
    const place = newest(mode, this.#asked.questions, log)
    const last = this.#asked.questions[place]
    this.#keep(before)
    this.#show(this.#set, null)
    const again = this.#asked.questions.findIndex((question) => question.kind !== "pair" ? question.candidate === last?.candidate
      : question.a === last?.a && question.b === last?.b)
    if (again >= 0) this.#show(this.#set, again)
    this.model.changed(null)
  }

  #keep(log) {
    const { picks, settings } = this.model
    const left = Object.values(log).some((list) => list.length)
    picks.put(this.#set.set, left ? judgement(settings.mode, this.#set.candidates, log, this.#keyOf(this.#set)) : undefined)
  }

  #goTo(at) {
    if (!this.#set || at < 0 || at >= this.#asked.questions.length) return
    this.#show(this.#set, at)
  }

  #goToSet(step) {
    const sets = this.model.sets()
    const entry = sets[sets.findIndex((other) => this.#isShown(other)) + step]
    if (entry && this.#set) this.#show(entry, null)
  }

  // --- looks ---

  #configure(settings) {
    Object.assign(this.model.settings, settings)
    const entry = this.#set
    if (entry) this.#show(entry)
    else this.refresh()
    // What was answered in another mode may be all that this one asks.
    const completed = entry && !this.#asked.todo && this.model.picks.of(entry.set)?.open
    if (completed) {
      this.#keep(this.#log())
      this.#show(entry)
    }
    this.model.changed(completed ? entry : null)
  }

  #toggleTogether() {
    this.model.settings.same_place = !this.model.settings.same_place
    this.model.changed(null)
    this.#stack()
  }

  #flip(on) {
    this.#flipped = on
    this.#stack()
  }

  #stack() {
    const pair = this.#question?.kind === "pair"
    const together = this.model.settings.same_place
    const toggle = this.root.querySelector(".d3po-together")
    toggle.hidden = !pair
    toggle.setAttribute("aria-pressed", String(together))
    this.stage.stack(pair && (together || this.#flipped) ? Number(this.#flipped) : null)
  }

  #expand() {
    if (this.dialog.open) return this.dialog.close()
    document.body.append(this.dialog)
    this.dialog.append(this.root)
    this.dialog.showModal()
    this.root.querySelector(".d3po-expand").textContent = "close"
    this.root.focus()
  }

  /** Leave the expanded view, as the node is gone. */
  close() {
    if (this.dialog.open) this.dialog.close()
    this.dialog.remove()
  }

  #collapse() {
    this.root.querySelector(".d3po-expand").textContent = "expand"
    this.place.append(this.root)
    this.dialog.remove()
    this.root.focus()
  }

  #toggleKeys() {
    this.help.hidden = !this.help.hidden
    this.#drawKeys()
  }

  #drawKeys() {
    this.help.replaceChildren(h("dl", {}, ...[...(KEYS[this.#question?.kind] ?? []), ...KEYS_ALWAYS]
      .flatMap(([key, what]) => [h("dt", {}, h("kbd", { textContent: key })), h("dd", { textContent: what })])))
  }

  // --- keys ---

  #key(event) {
    const composed = "[]{}?".includes(event.key) // on many keyboards with Option or AltGr
    if (!composed && (event.ctrlKey || event.altKey || event.metaKey)) return
    const own = event.target.matches?.("select")
      || (event.target.matches?.("input") && !/^[a-z0-9[\]{}?]$/i.test(event.key))
    if (own && event.key !== "Escape") return event.stopPropagation()
    const act = this.#actOf(event)
    if (act) {
      event.preventDefault()
      event.stopPropagation()
      if (!event.repeat) act()
    } else if (event.key === "Enter" || event.key === " ") {
      if (event.repeat) event.preventDefault()
      event.stopPropagation() // the button's own
    }
  }

  #keyUp(event) {
    if (event.key.toLowerCase() === "f") this.#flip(false)
    event.stopPropagation()
  }

  #actOf(event) {
    const question = this.#question
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key
    const always = { u: () => this.undo(), "[": () => this.#goTo(this.#at - 1), "]": () => this.#goTo(this.#at + 1),
      "{": () => this.#goToSet(-1), "}": () => this.#goToSet(1), e: () => this.#expand(), "?": () => this.#toggleKeys(),
      "+": () => this.stage.zoom(1.25), "-": () => this.stage.zoom(0.8), "0": () => this.stage.reset(),
      o: () => this.#toggleTogether() }
    if (key in always) return always[key]
    if (!question) return key === "Enter" && event.target === this.root && this.answers.querySelector(".d3po-continue") ? () => this.model.run(this.#set) : null
    return keysFor(question.kind, this.#acts)[key] ?? null
  }
}
