// What squares and rows mean, for somebody who sees them for the first time.

const SAMPLES = [
  ["Free", "Nobody has it, and nothing is kept in it.", () => ({state: CELL.FREE, colors: [], used: 0, cached: 0, filled: 1})],
  ["In use", "Each request has a colour. Its newest block fills up as it goes on.", paints => ({state: CELL.USED, colors: [hueOf(0, paints)], used: 1, cached: 0, filled: .6})],
  ["Shared", "Several requests begin with the same text, which was computed once.", paints => ({state: CELL.USED, colors: [0, 1, 2].map(number => hueOf(number, paints)), used: 1, cached: 0, filled: 1})],
  ["Cached", "Its request has ended. It is kept for the next one that begins alike, until room is needed.", () => ({state: CELL.CACHED, colors: [], used: 0, cached: 1, filled: 1})],
  ["Being saved", "On its way down to a tier below: host memory, or a disk.", paints => ({state: CELL.SAVING, colors: [hueOf(1, paints)], used: 1, cached: 0, filled: 1})],
  ["Being loaded", "On its way back up, which is quicker than computing it.", paints => ({state: CELL.LOADING, colors: [hueOf(1, paints)], used: 1, cached: 0, filled: 1})],
]

const ROW_SAMPLES = [
  ["waits", (context, paints) => bar(context, paints.wait, 1, 6, 2)],
  ["reads its prompt (prefill)", (context, paints) => { bar(context, hueOf(0, paints), 1, 0, 14, 9); bar(context, hueOf(0, paints), 1, 0, 14, 13, 11) }],
  ["writes (decode)", (context, paints) => bar(context, hueOf(0, paints), .55, 3, 8)],
  ["waits for a load", (context, paints) => bar(context, paints.moving, 1, 5, 4)],
  ["steps: prompts over answers", (context, paints) => {
    for (const [index, top] of [0, 5, 2].entries()) {
      bar(context, paints.accent, 1, top, 10 - top, 9, index * 10)
      bar(context, paints.soft, 1, 10, 4, 9, index * 10)
    }
  }],
]

function bar(context, color, alpha, top, height, width = 30, left = 0) {
  context.globalAlpha = alpha
  context.fillStyle = color
  context.fillRect(left, top, width, height)
  context.globalAlpha = 1
}

function showLegend(blocks, rows, paints) {
  blocks.replaceChildren(...SAMPLES.map(([name, words, cell]) => {
    const canvas = el("canvas", {"aria-hidden": "true"})
    square(sized(canvas, 26, 26), 0, 0, 28, cell(paints), paints)
    return el("li", {}, canvas, el("span", {}, el("b", {}, `${name}. `), words))
  }))
  rows.replaceChildren(...ROW_SAMPLES.map(([words, draw]) => {
    const canvas = el("canvas", {"aria-hidden": "true"})
    draw(sized(canvas, 30, 14), paints)
    return el("li", {}, canvas, words)
  }))
}
