// Colours and small drawings that blocks, requests and legend have in common.

const PAINTS = ["paper", "sheet", "sunk", "ink", "soft", "line", "accent", "free", "cached", "moving", "wait", "good", "bad"]

/** The page's colours as a canvas takes them, for light or dark as it is now. */
function palette() {
  const probe = el("span", {hidden: true})
  document.body.append(probe)
  const found = {}
  for (const name of PAINTS) {
    probe.style.color = `var(--${name})`
    found[name] = getComputedStyle(probe).color
  }
  probe.remove()
  const [r, g, b] = found.paper.match(/[\d.]+/g).map(Number)
  found.dark = r + g + b < 384
  return found
}

/** A colour for the request of this number; neighbours differ most (golden angle). */
function hueOf(number, paints, alpha = 1) {
  const hue = (number * 137.508 + 205) % 360
  return `hsl(${hue.toFixed(0)} ${paints.dark ? "58% 63%" : "56% 46%"} / ${alpha})`
}

/** A canvas of that many CSS pixels, sharp on any screen. Returns its context. */
function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)]
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, {width: w, height: h})
  canvas.style.height = `${height}px`
  const context = canvas.getContext("2d")
  context.setTransform(ratio, 0, 0, ratio, 0, 0)
  context.clearRect(0, 0, width, height)
  return context
}

/**
 * One square.
 * @param {{state: number, colors: string[], used: number, cached: number, filled: number}} cell `colors` of its owners; `used` and
 *   `cached` as shares of its blocks; `filled`: how much of a block in use has been written.
 */
function square(context, x, y, size, cell, paints) {
  const gap = size > 9 ? 2 : 1, side = size - gap, round = Math.min(3, side / 4), alpha = context.globalAlpha
  const shape = () => { context.beginPath(); context.roundRect(x, y, side, side, round) }
  shape()
  context.fillStyle = paints.free
  context.fill()
  if (cell.state === CELL.FREE) return
  context.save()
  context.clip()
  if (cell.cached > 0) hatched(context, x, y + side * (1 - cell.used - cell.cached), side, side * cell.cached, paints)
  if (cell.used > 0) {
    const height = side * cell.used, colors = cell.colors.length ? cell.colors : [paints.wait]
    colors.forEach((color, index) => {
      const [left, width] = [x + side * index / colors.length, side / colors.length + .5]
      context.fillStyle = color
      context.globalAlpha = alpha * .3
      context.fillRect(left, y + side - height, width, height)
      context.globalAlpha = alpha
      context.fillRect(left, y + side - height * cell.filled, width, height * cell.filled)
    })
  }
  context.restore()
  if (cell.state >= CELL.SAVING) arrow(context, x, y, side, cell.state === CELL.LOADING, paints)
}

function hatched(context, x, y, width, height, paints) {
  context.fillStyle = paints.cached
  const alpha = context.globalAlpha
  context.globalAlpha = alpha * .45
  context.fillRect(x, y, width, height)
  context.globalAlpha = alpha
  context.strokeStyle = paints.cached
  context.lineWidth = 1.4
  context.beginPath()
  for (let at = -width; at < width; at += 4) {
    context.moveTo(x + at, y + height)
    context.lineTo(x + at + height, y)
  }
  context.stroke()
}

/** A frame and an arrow: up from a tier to the device, or down. */
function arrow(context, x, y, side, up, paints) {
  context.strokeStyle = paints.moving
  context.lineWidth = side > 9 ? 2 : 1.5
  context.strokeRect(x + context.lineWidth / 2, y + context.lineWidth / 2, side - context.lineWidth, side - context.lineWidth)
  if (side < 8) return
  const [middle, top, low] = [x + side / 2, y + side * .3, y + side * .7]
  const [tip, end] = up ? [top, low] : [low, top]
  context.strokeStyle = paints.sheet
  context.lineWidth = Math.max(1.5, side / 8)
  context.beginPath()
  context.moveTo(middle - side * .2, tip + (end - tip) * .5)
  context.lineTo(middle, tip)
  context.lineTo(middle + side * .2, tip + (end - tip) * .5)
  context.moveTo(middle, tip)
  context.lineTo(middle, end)
  context.stroke()
}

const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"]
  let unit = 0
  for (; count >= 1024 && unit < units.length - 1; unit++) count /= 1024
  return `${count >= 100 || unit === 0 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`
}

/** A span of time in few words. */
function span(seconds) {
  if (seconds < 1) return `${Math.max(0, Math.round(seconds * 1000))} ms`
  return seconds < 100 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds / 60)} min`
}
