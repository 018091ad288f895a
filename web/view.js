// The picker's element: shows one question, takes its answer, shows the next.

import { button, buttonsFor, keysFor } from "./answers.js"
import { judgement, logOf } from "./judgement.js"
import { answered, ask, candidatesOf, FIRST, isSame, newest, SECOND, undone, winnerOf } from "./judging.js"
import { Panel } from "./panel.js"
import { picture, Stage } from "./stage.js"
import { askedOf, byWins, GONE, judgedOf, labelOf, MOST_SUMMED, progressOf, summaryOf } from "./words.js"

const LOOK_AHEAD = 3 // questions whose images are fetched before they are asked

/** @typedef {import("./inbox.js").Entry} Entry */
/** @typedef {import("./judging.js").Answer} Answer */
/** @typedef {import("./judging.js").Log} Log */
/** @typedef {import("./judging.js").Mode} Mode */
/** @typedef {import("./picker.js").Model} Model */
/** @typedef {import("./picker.js").Settings} Settings */
/** @typedef {import("./judging.js").Question} Question */

/** The picker's user interface on a model. */
export class View {
  /** The set on screen.
   *  @type {Entry | null} */
  #set = null
  #at = 0 // the question on screen
  /** @type {{ questions: Question[], todo: number }} */
  #asked = { questions: [], todo: 0 }
  #ready = false // the question's images are drawn
  #flipped = false
  /** The run that showed the newest set.
   *  @type {string | undefined | null} */
  #newestRun = null
  /** Settles when what is on screen is drawn. */
  #drawn = Promise.resolve()
  /** @type {import("./answers.js").Acts} */
  #acts = {
    choose: (pane) => this.#choose(pane),
    answer: (answer) => this.answer(answer),
    flip: (on) => this.#flip(on),
    step: (by) => this.stage.focus(Math.max(this.stage.focused + by, 0))
  }

  /** @param {Model} model */
  constructor(model) {
    this.model = model
    this.stage = new Stage((index) => this.#choose(index))
    this.panel = new Panel(this.stage.element, {
      configure: (settings) => this.#configure(settings),
      goTo: (at) => this.#goTo(at),
      step: (by) => this.#goTo(this.#at + by),
      toggleTogether: () => this.#toggleTogether(),
      undo: () => this.undo(),
      cancel: () => this.model.cancel(),
      end: () => this.#set && this.model.run(this.#set),
      actOf: (event) => this.#actOf(event),
      unflip: () => this.#flip(false),
      closed: () => this.model.closed?.()
    })
    this.refresh()
  }

  /** The element that stands in the node. */
  get place() {
    return this.panel.place
  }

  get drawn() {
    return this.#drawn
  }

  /** Show what there is to do now, after the picks, the sets or the settings have changed. */
  refresh() {
    const sets = this.model.sets()
    const now =
      sets.find((entry) => this.#isShown(entry)) ?? sets.find((entry) => entry.set === this.#set?.set)
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
    const newest = open.filter((entry) => entry.prompt === open.at(-1)?.prompt)
    this.#show(
      open.find((entry) => picks.of(entry.set)) ??
        newest[0] ??
        sets.find((entry) => this.#isShown(entry)) ??
        this.#set ??
        sets.at(-1) ??
        null
    )
  }

  /** @param {Entry | null} entry
   *  @param {number | null} at the question; null for the first that has no answer */
  #show(entry, at = null) {
    const kept = entry !== null && entry.set === this.#set?.set
    this.#set = entry
    if (entry) {
      this.#asked = ask(this.model.settings.mode, entry.candidates, this.#log(entry), this.#keyOf(entry))
      const first = this.#asked.questions.findIndex((question) => question.answer === undefined)
      this.#at = at ?? (first >= 0 ? first : this.#asked.questions.length)
    }
    this.#drawn = this.#draw(kept)
  }

  /** @param {Entry} entry */
  #isShown(entry) {
    return entry.set === this.#set?.set && entry.node === this.#set?.node
  }

  /** @param {Entry} entry */
  #log(entry) {
    return logOf(this.model.picks.of(entry.set))
  }

  /** @param {Entry} entry */
  #keyOf(entry) {
    return `${this.model.settings.seed} ${entry.set}`
  }

  get #question() {
    return this.#set ? this.#asked.questions[this.#at] : undefined
  }

  /** The candidates of a question about a set, in the order of their panes.
   *  @param {Entry} entry
   *  @param {Question} question */
  #candidates(entry, question) {
    return candidatesOf(question, this.#keyOf(entry))
  }

  /** @param {boolean} kept whether zoom and place are */
  async #draw(kept) {
    const { settings, picks } = this.model
    const question = this.#question
    const entry = this.#set
    const focused = this.panel.root.contains(document.activeElement)
    this.#ready = false
    this.#flipped = false
    const state = { waiting: Boolean(entry?.waiting), enough: question !== undefined && this.model.enough }
    this.panel.show(settings, question?.kind ?? (entry ? "done" : "empty"), state, entry?.text ?? "")
    this.panel.tell(picks.problem || (entry ? "" : this.model.empty))
    this.#drawProgress()
    if (question) this.#drawAnswers(question)
    else this.#drawDone()
    if (focused) this.panel.holdFocus()
    if (!this.panel.help.hidden) this.panel.drawKeys()
    if (!entry) return this.stage.clear()
    const { references, labels } = this.#panes(entry, question)
    try {
      const drawn = await this.stage.show(references, labels, kept)
      if (focused) this.panel.holdFocus()
      if (!drawn) return
    } catch {
      if (entry.set === this.#set?.set) this.panel.tell(GONE)
      return
    }
    this.#ready = true
    this.stage.mark(question ? this.#chosen(entry, question) : [])
    this.#stack()
    this.#lookAhead(entry)
  }

  /** The panes of the question's candidates, or of the judged set's, the most preferred first.
   *  @param {Entry} entry
   *  @param {Question | undefined} question */
  #panes(entry, question) {
    const { set, candidates: count, images } = entry
    const judged = this.model.picks.of(set)
    const asked = question ?? (this.model.blind ? this.#asked.questions[0] : undefined)
    const shown = asked ? this.#candidates(entry, asked) : byWins(judged, count).slice(0, MOST_SUMMED)
    const labels = shown.map((candidate, i) => {
      if (question) return labelOf(question, i, shown.length)
      return summaryOf(judged, count, candidate, asked ? i : candidate)
    })
    return { references: shown.map((candidate) => images[candidate]), labels }
  }

  /** Which panes the question's answer chose.
   *  @param {Entry} entry
   *  @param {Question} question */
  #chosen(entry, question) {
    const winner = winnerOf(question)
    return this.#candidates(entry, question).flatMap((candidate, i) => (candidate === winner ? [i] : []))
  }

  #drawProgress() {
    const { questions, todo } = this.#asked
    const { blind, picks, settings } = this.model
    const entry = this.#set
    const sets = this.model.sets()
    const answered = questions.filter((question) => question.answer !== undefined).length
    const judged = sets.filter((other) => picks.finished(other.set)).length
    const place = sets.findIndex((other) => this.#isShown(other))
    const done = blind ? judged : answered
    const left = blind ? sets.length - judged : todo
    const atMost = todo > 0 && settings.mode === "ranking"
    const way = { done, left, atMost, place, sets: sets.length, blind }
    this.panel.count.textContent = entry ? progressOf(way) : ""
    const canUndo = Boolean(entry && (undone(settings.mode, this.#log(entry)) ?? this.#before))
    this.panel.showProgress(
      { done, todo: left, at: this.#at, questions: questions.length, canUndo },
      Boolean(entry)
    )
  }

  /** In a blind session, where a set is one answer, the last judged one before the set on screen. */
  get #before() {
    const sets = this.model.blind ? this.model.sets() : []
    const place = sets.findIndex((entry) => this.#isShown(entry))
    return sets.slice(0, Math.max(place, 0)).findLast((entry) => this.model.picks.finished(entry.set))
  }

  /** @param {Question} question */
  #drawAnswers(question) {
    const { answers, status } = this.panel
    if (answers.dataset.kind !== question.kind)
      answers.replaceChildren(...buttonsFor(question.kind, this.#acts))
    answers.dataset.kind = question.kind
    for (const each of /** @type {NodeListOf<HTMLElement>} */ (answers.querySelectorAll("[data-answer]")))
      each.setAttribute("aria-pressed", String(each.dataset.answer === String(question.answer)))
    const count = this.model.settings.mode === "ranking" ? null : this.#asked.questions.length
    status.textContent = askedOf(question, this.#at, count, this.model.blind)
  }

  /** What there is to do about a set that is judged, if there is a set. */
  #drawDone() {
    const { answers, status } = this.panel
    const entry = this.#set
    delete answers.dataset.kind
    answers.replaceChildren()
    status.textContent = ""
    if (!entry) return
    const open = this.model.sets().filter((other) => !this.model.picks.finished(other.set)).length
    const { goesOn, next } = this.model
    status.textContent = open || goesOn ? judgedOf(open, next) : next
    answers.append(button("review", "[", "look again", () => this.#goTo(this.#asked.questions.length - 1)))
    if (open) answers.append(button("onward", "}", "next set", () => this.#next()))
    else if (goesOn)
      answers.append(button("continue", "Enter", "continue the run", () => this.model.run(entry)))
  }

  /** @param {Entry} entry */
  #lookAhead(entry) {
    const { questions } = this.#asked
    for (const question of questions.slice(this.#at + 1, this.#at + 1 + LOOK_AHEAD))
      for (const candidate of this.#candidates(entry, question)) picture(entry.images[candidate])
    if (questions.length - this.#at > LOOK_AHEAD) return
    // Of a ranking the next pairs are not known yet, nor which set comes next: the first ones are likely.
    const others = this.model
      .sets()
      .filter((other) => other !== entry && !this.model.picks.finished(other.set))
    const likely = others.slice(0, LOOK_AHEAD).flatMap((other) => other.images.slice(0, 4))
    for (const image of [...entry.images.slice(0, 16), ...likely]) picture(image)
  }

  /** @param {number} index of a pane */
  #choose(index) {
    const question = this.#question
    const entry = this.#set
    if (!entry || !question || !this.#ready || "candidate" in question) return
    const candidate = this.#candidates(entry, question)[index]
    if (candidate === undefined) return
    this.answer(question.kind === "best" ? candidate : candidate === question.a ? FIRST : SECOND)
  }

  /** Answer the question on screen and show the next. Nothing happens while its images are not drawn yet.
   *  @param {Answer} answer */
  answer(answer) {
    const question = this.#question
    const entry = this.#set
    if (!entry || !question || !this.#ready || this.model.picks.problem) return
    const wasFinished = this.model.picks.finished(entry.set)
    const again = question.answer !== undefined
    const at = this.#at
    this.#keep(entry, answered(this.model.settings.mode, this.#log(entry), question, answer))
    const finished = this.model.picks.finished(entry.set)
    if (finished && !wasFinished) this.#next()
    // Whoever went back to a question goes on with the one after it.
    else this.#show(entry, again && finished ? at + 1 : null)
    this.model.changed(finished && !wasFinished ? entry : null)
  }

  /** Take the newest answer of the set on screen back, and ask it again. */
  undo() {
    const { mode } = this.model.settings
    const entry = this.#set
    if (!entry) return
    const log = this.#log(entry)
    const before = undone(mode, log)
    if (!before && this.#before) {
      this.#show(this.#before)
      this.undo()
    }
    if (!before) return
    const place = newest(mode, this.#asked.questions, log)
    const last = this.#asked.questions[place]
    this.#keep(entry, before)
    this.#show(entry, null)
    const again = this.#asked.questions.findIndex((question) => isSame(question, last))
    if (again >= 0) this.#show(entry, again)
    this.model.changed(null)
  }

  /** @param {Entry} entry
   *  @param {Log} log */
  #keep(entry, log) {
    const { picks, settings } = this.model
    const left = Object.values(log).some((list) => list.length)
    const made = left ? judgement(settings.mode, entry.candidates, log, this.#keyOf(entry)) : undefined
    picks.put(entry.set, made)
  }

  /** @param {number} at a question */
  #goTo(at) {
    if (!this.#set || at < 0 || at >= this.#asked.questions.length) return
    this.#show(this.#set, at)
  }

  /** @param {number} step among the sets */
  #goToSet(step) {
    const sets = this.model.sets()
    const entry = sets[sets.findIndex((other) => this.#isShown(other)) + step]
    if (entry && this.#set) this.#show(entry, null)
  }

  /** @param {Partial<Settings>} settings */
  #configure(settings) {
    Object.assign(this.model.settings, settings)
    const entry = this.#set
    if (entry) this.#show(entry)
    else this.refresh()
    // What was answered in another mode may be all that this one asks.
    const completed = entry && !this.#asked.todo && this.model.picks.of(entry.set)?.open
    if (completed) {
      this.#keep(entry, this.#log(entry))
      this.#show(entry)
    }
    this.model.changed(completed ? entry : null)
  }

  #toggleTogether() {
    this.model.settings.same_place = !this.model.settings.same_place
    this.model.changed(null)
    this.#stack()
  }

  /** @param {boolean} on */
  #flip(on) {
    this.#flipped = on
    this.#stack()
  }

  #stack() {
    const pair = this.#question?.kind === "pair"
    const together = this.model.settings.same_place
    this.panel.showTogether(pair, together)
    this.stage.stack(pair && (together || this.#flipped) ? Number(this.#flipped) : null)
  }

  /** What a key does now.
   *  @param {KeyboardEvent} event */
  #actOf(event) {
    const question = this.#question
    const entry = this.#set
    const { root, answers } = this.panel
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key
    /** @type {Record<string, () => void>} */
    const always = {
      u: () => this.undo(),
      "[": () => this.#goTo(this.#at - 1),
      "]": () => this.#goTo(this.#at + 1),
      "{": () => this.#goToSet(-1),
      "}": () => this.#goToSet(1),
      e: () => this.panel.expand(),
      "?": () => this.panel.toggleKeys(),
      "+": () => this.stage.zoom(1.25),
      "-": () => this.stage.zoom(0.8),
      0: () => this.stage.reset(),
      o: () => this.#toggleTogether()
    }
    if (key in always) return always[key]
    if (!question) {
      const goesOn = key === "Enter" && event.target === root && answers.querySelector(".d3po-continue")
      return entry && goesOn ? () => this.model.run(entry) : null
    }
    return keysFor(question.kind, this.#acts)[key] ?? null
  }
}
