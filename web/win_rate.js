// Whether a blind session has enough answers, as d3po_core/training/win_rate.py says it.

const NORMAL_95 = 1.959964
const NORMAL_EARLY = 2.807
const LEAST = 6
const NARROW = 0.1

/** @typedef {{ wins: number, losses: number, ties: number }} Result */

/** How often candidate 1 is preferred to candidate 0, and how often neither is.
 *  @param {(import("./judgement.js").Judgement | undefined)[]} judgements
 *  @returns {Result} */
export function resultOf(judgements) {
  const winners = judgements.flatMap((judged) => (judged?.pairs ?? []).map(([winner]) => winner))
  return {
    wins: winners.filter((winner) => winner === 1).length,
    losses: winners.filter((winner) => winner === 0).length,
    ties: judgements.filter((judged) => judged?.ties?.length).length
  }
}

/** Whether 50 % lies outside Wilson's early interval of the win rate, or inside a narrow one at 95 %.
 *  @param {Result} result */
export function isEnough({ wins, losses, ties }) {
  const answers = wins + losses + ties
  if (answers < LEAST) return false
  const share = (wins + ties / 2) / answers
  const score = Math.abs(share - 0.5) * 2 * Math.sqrt(answers) // of the test that Wilson's interval inverts
  if (score > NORMAL_EARLY) return true
  const spread = (share * (1 - share)) / answers + NORMAL_95 ** 2 / (4 * answers ** 2)
  const half = (NORMAL_95 / (1 + NORMAL_95 ** 2 / answers)) * Math.sqrt(spread)
  return score <= NORMAL_95 && half < NARROW
}
