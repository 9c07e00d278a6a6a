// The squares of one engine.

const SIZES = [20, 18, 16, 14, 12, 10, 9, 8, 7]
const MOST_HEIGHT = 400

/** The largest squares with which all fit, at most 400 pixels high; below 7 pixels it grows higher. */
function gridOf(count, width) {
  for (const size of SIZES) {
    const columns = Math.max(1, Math.floor(width / size))
    if (Math.ceil(count / columns) * size <= MOST_HEIGHT || size === SIZES.at(-1)) return {size, columns, rows: Math.ceil(count / columns)}
  }
}

/** A canvas with the squares; `chosen` is called with a request's id when one of its squares is clicked, or with null. */
class Blocks {
  constructor(tracks, story, chosen) {
    this._tracks = tracks
    this._story = story
    this.canvas = el("canvas", {class: "blocks", tabindex: "0", role: "img"})
    this.canvas.addEventListener("pointermove", event => this._point(event))
    this.canvas.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") story.hide() })
    this.canvas.addEventListener("click", event => { this._point(event); const index = this._at(event); chosen(index === null ? null : this._ids(index)[0] ?? null) })
    this.drawn = null
  }

  /** @param {string | null} selected the id of the request whose squares stand out */
  paint(engine, drawn, at, selected, paints) {
    this.drawn = drawn
    this._engine = engine
    this._time = at
    const cells = this.cells = cellsOf(drawn)
    const width = this.canvas.clientWidth || this.canvas.parentElement.clientWidth
    const grid = this._grid = gridOf(cells.count, width)
    const context = sized(this.canvas, width, grid.rows * grid.size)
    for (let index = 0; index < cells.count; index++) {
      const [x, y] = this._place(index)
      const ids = this._ids(index)
      context.globalAlpha = selected === null || ids.includes(selected) ? 1 : .22
      square(context, x, y, grid.size, this._cell(index, ids, paints), paints)
    }
    context.globalAlpha = 1
    this.canvas.setAttribute("aria-label", `${plural(drawn.used, "block")} in use, ${drawn.cached.toLocaleString("en")} cached, ${drawn.free.toLocaleString("en")} free`)
  }

  _place(index) {
    const {size, columns} = this._grid
    return [index % columns * size, Math.floor(index / columns) * size]
  }

  _ids(index) {
    return idsAt(this.drawn, this.cells, index)
  }

  _cell(index, ids, paints) {
    const {states, active, cached, perCell, blocks} = this.cells
    const size = Math.min(perCell, blocks - index * perCell)
    const colors = ids.slice(0, 4).map(id => hueOf(this._tracks.numberOf(id), paints))
    return {state: states[index], colors, used: active[index] / size, cached: cached[index] / size}
  }

  /** The square at a pointer, or null. */
  _at(event) {
    if (!this.drawn) return null
    const {size, columns} = this._grid
    const column = Math.floor(event.offsetX / size), index = Math.floor(event.offsetY / size) * columns + column
    return column >= 0 && column < columns && index >= 0 && index < this.cells.count ? index : null
  }

  _point(event) {
    const index = this._at(event)
    if (index === null) this._story.hide()
    else this._story.show(event, () => storyOf(this._tracks, this._engine, this.drawn, this.cells, index, this._time))
  }
}
