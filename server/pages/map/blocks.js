// The squares of one engine.

const SIZES = [26, 23, 20, 18, 16, 14, 12, 10, 9, 8, 7]
const MOST_HEIGHT = 400

/** The largest squares with which all fit, some 400 pixels high; below 7 pixels it grows higher. Columns fill the width. */
function gridOf(count, width) {
  for (const least of SIZES) {
    const columns = Math.max(1, Math.floor(width / least)), size = width / columns, rows = Math.ceil(count / columns)
    if (rows * size <= MOST_HEIGHT || least === SIZES.at(-1)) return {size, columns, rows}
  }
}

/** A canvas with the squares; `chosen` is called with a request's id when one of its squares is clicked, or with null. */
class Blocks {
  constructor(tracks, story, chosen, repaint) {
    this._repaint = repaint
    this._tracks = tracks
    this._story = story
    this.canvas = el("canvas", {class: "blocks", role: "img"})
    this.canvas.addEventListener("pointermove", event => this._point(event))
    this.canvas.addEventListener("pointerleave", event => this._leave(event))
    this.canvas.addEventListener("click", event => { this._point(event); const index = this._at(event); chosen(index === null ? null : this._ids(index)[0] ?? null) })
    this.drawn = null
    this._pointed = null
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
    if (this._pointed !== null && this._pointed < cells.count) this._ring(context, paints)
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
    return {state: states[index], colors, used: active[index] / size, cached: cached[index] / size, filled: this._filled(index, size)}
  }

  /** How much of a request's own block has been written, as a share. */
  _filled(index, size) {
    const [count, row] = this.cells.owners[this.cells.sets[index]], tokens = this.drawn.block_size
    if (size > 1 || count !== 1) return 1
    return Math.max(0, Math.min(1, (this.drawn.requests[row].computed - this.cells.places[index] * tokens) / tokens))
  }

  /** The square at a pointer, or null. */
  _at(event) {
    if (!this.drawn) return null
    const {size, columns} = this._grid
    const column = Math.floor(event.offsetX / size), index = Math.floor(event.offsetY / size) * columns + column
    return column >= 0 && column < columns && index >= 0 && index < this.cells.count ? index : null
  }

  _ring(context, paints) {
    const [x, y] = this._place(this._pointed), side = this._grid.size - (this._grid.size > 9 ? 2 : 1)
    context.strokeStyle = paints.ink
    context.lineWidth = 1.6
    context.strokeRect(x - .2, y - .2, side + .4, side + .4)
  }

  _leave(event) {
    if (event.pointerType !== "mouse") return
    this._story.hide()
    this._pointed = null
    this._repaint()
  }

  _point(event) {
    const index = this._at(event)
    if (index !== this._pointed) this._repaint()
    this._pointed = index
    if (index === null) this._story.hide()
    else this._story.show(event, () => storyOf(this._tracks, this._engine, this.drawn, this.cells, index, this._time))
  }
}
