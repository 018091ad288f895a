// The answers there are to each kind of question, as buttons and as keys.

import { BAD, DOWN, SKIP, TIE, UP } from "./judging.js"
import { tr } from "./language.js"
import { held } from "./place.js"
import { h } from "./stage.js"

/** @typedef {import("./judging.js").Answer} Answer */
/** @typedef {import("./judging.js").Kind} Kind */

/**
 * @typedef {object} Acts what buttons and keys do
 * @property {(pane: number) => void} choose
 * @property {(answer: Answer) => void} answer
 * @property {(on: boolean) => void} flip show the other image, or no longer
 * @property {(by: number) => void} step among the panes
 */

const STARS = [1, 2, 3, 4, 5]
const THUMB = `<svg viewBox="0 0 24 24" fill="currentColor" stroke="currentColor" stroke-width="1.5"
  stroke-linejoin="round"><path d="M3 11h3v10H3zM9 11l4-8c2 0 3 1.5 2.5 3.5L15 10h4.5c1 0 1.7 1 1.4 2l-2 7.5
  c-.3 1-1 1.5-2 1.5H12c-1.5 0-3-.6-3-2z"/></svg>`

/** A drawn thumb, UP or DOWN.
 *  @param {Answer | undefined} answer */
export const thumb = (answer) =>
  h("span", {
    class: `d3po-thumb d3po-thumb-${answer === UP ? "up" : "down"}`,
    "aria-hidden": "true",
    innerHTML: THUMB
  })

/** A button of the picker.
 *  @param {string} name
 *  @param {string} key that does the same, or ""
 *  @param {string} label
 *  @param {() => void} act
 *  @param {Element[]} before what stands before the label */
export const button = (name, key, label, act, ...before) =>
  h(
    "button",
    {
      type: "button",
      class: `d3po-${name}`,
      "data-act": name,
      "aria-keyshortcuts": key,
      title: key ? `${tr(label)} (${key})` : label,
      onclick: act
    },
    ...before,
    label
  )

/** The buttons that answer a question. One that always gives the same answer has it as data-answer.
 *  @param {Kind} kind
 *  @param {Acts} acts */
export function buttonsFor(kind, { choose, answer, flip }) {
  /** @param {Answer} value
   *  @param {string} name
   *  @param {string} key
   *  @param {string} label
   *  @param {Element[]} before */
  const answering = (value, name, key, label, ...before) => {
    const made = button(name, key, label, () => answer(value), ...before)
    made.dataset.answer = String(value)
    return made
  }
  const skip = answering(SKIP, "skip", "S", "skip")
  if (kind === "thumb")
    return [
      answering(UP, "up", "1", "thumb up", thumb(UP)),
      answering(DOWN, "down", "2", "thumb down", thumb(DOWN)),
      skip
    ]
  if (kind === "star")
    return [
      ...STARS.map((n) => {
        const star = answering(n, `star-${n}`, String(n), `${n} ${"★".repeat(n)}`)
        star.setAttribute("aria-label", tr("{n} of 5 stars", { n }))
        return star
      }),
      skip
    ]
  if (kind === "best") return [skip, answering(BAD, "bad", "B", "none is good")]
  const hold = held(
    button("flip", "F", "hold to flip", () => {}),
    flip
  )
  return [
    button("left", "1", "1 · left", () => choose(0)),
    answering(TIE, "tie", "3", "no difference"),
    button("right", "2", "2 · right", () => choose(1)),
    skip,
    answering(BAD, "bad", "B", "both bad"),
    hold
  ]
}

/** What each key does while a question is asked.
 *  @param {Kind} kind
 *  @param {Acts} acts
 *  @returns {Record<string, () => void>} */
export function keysFor(kind, { choose, answer, flip, step }) {
  const left = () => choose(0)
  const right = () => choose(1)
  const up = () => answer(UP)
  const down = () => answer(DOWN)
  const bad = () => answer(BAD)
  const tie = () => answer(TIE)
  /** @type {(count: number, act: (n: number) => void) => Record<string, () => void>} */
  const numbered = (count, act) =>
    Object.fromEntries(Array.from({ length: count }, (_, i) => [i + 1, () => act(i + 1)]))
  const keys = {
    pair: {
      1: left,
      ArrowLeft: left,
      2: right,
      ArrowRight: right,
      3: tie,
      ArrowDown: tie,
      b: bad,
      f: () => flip(true)
    },
    best: {
      ...numbered(9, (n) => choose(n - 1)),
      ArrowLeft: () => step(-1),
      ArrowRight: () => step(1),
      b: bad
    },
    star: numbered(STARS.length, answer),
    thumb: { 1: up, ArrowUp: up, 2: down, ArrowDown: down }
  }
  return { ...keys[kind], s: () => answer(SKIP) }
}
