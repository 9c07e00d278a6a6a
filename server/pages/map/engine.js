// The card of one engine: how it is, its squares, its tiers.

const RATE_SECONDS = 2
const AWAY = {
  starting: "The engine is starting. Its squares come when it is ready.",
  dead: "The engine was given up. POST /v1/engines/NAME/restart starts it anew.",
  stopped: "The server is shutting down.",
}

class EngineCard {
  constructor(name, tracks, story, chosen, repaint) {
    this.name = name
    this._tracks = tracks
    this.blocks = new Blocks(tracks, story, chosen, repaint)
    this._role = el("span", {class: "chip role"})
    this._state = el("span", {class: "chip"})
    this._figures = Object.fromEntries(["running", "waiting", "prompt tokens/s", "tokens written/s"].map(label => [label, el("dd")]))
    this._share = shareBar()
    this._counts = el("div", {class: "counts"})
    this._tiers = el("div", {class: "tiers"})
    this._away = el("p", {class: "away", hidden: true})
    this._body = el("div", {class: "engine"}, this.blocks.canvas, this._share.node, this._counts, this._tiers)
    this.node = el("section", {class: "card engine", "data-engine": name, "aria-label": name},
      el("div", {class: "head"}, el("h2", {}, name), this._role, this._state),
      el("dl", {class: "figures"}, Object.entries(this._figures).map(([label, dd]) => el("div", {}, el("dt", {}, label), dd))),
      this._away, this._body)
  }

  paint(line, at, selected, paints, sharesTiers) {
    const drawn = line?.map ?? null
    this._role.textContent = {mixed: "prompts and answers", prefill: "prompts", decode: "answers"}[line?.role] ?? ""
    this._state.textContent = line?.state ?? "not seen yet"
    this._state.dataset.state = line?.state ?? ""
    this._away.hidden = drawn !== null
    this._body.hidden = drawn === null
    this._away.textContent = AWAY[line?.state] ?? "Nothing has come from the engine yet."
    this._rates(drawn, at)
    if (!drawn) return
    this.blocks.paint(this.name, drawn, at, selected, paints)
    const {used, cached, free} = drawn, all = used + cached + free
    this._share.set(used / all, cached / all)
    const per = drawn.cells.per_cell
    this._counts.replaceChildren(
      ...[[used, "in use"], [cached, "cached"], [free, "free"]].map(([count, word]) => el("span", {}, el("b", {}, count.toLocaleString("en")), ` ${word}`)),
      el("span", {}, `of ${plural(all, "block")}${per > 1 ? `, ${per} in a square` : ""}`))
    this._tiers.replaceChildren(...drawn.tiers.filter(tier => !(sharesTiers && tier.shared)).map(tierBar))
  }

  _rates(drawn, at) {
    const steps = this._tracks.stepsSince(this.name, at - RATE_SECONDS).filter(step => step.ended <= at)
    const rate = field => Math.round(steps.reduce((sum, step) => sum + step[field], 0) / RATE_SECONDS).toLocaleString("en")
    const figures = [drawn?.running ?? 0, drawn?.waiting ?? 0, rate("prompt_tokens"), rate("decodes")]
    Object.values(this._figures).forEach((dd, index) => { dd.textContent = figures[index] })
  }
}

/** A bar of two parts. */
function shareBar() {
  const used = el("i", {class: "used"}), cached = el("i", {class: "cached"})
  return {
    node: el("div", {class: "share", "aria-hidden": "true"}, used, cached),
    set: (first, second) => { used.style.width = `${100 * first}%`; cached.style.width = `${100 * second}%` },
  }
}

/** A tier: its fill, and what is on its way. */
function tierBar(tier) {
  const bar = shareBar()
  bar.set(tier.capacity ? tier.bytes / tier.capacity : 0, 0)
  const moves = [tier.loading && `↑ ${tier.loading} loading`, tier.saving && `↓ ${tier.saving} saving`].filter(Boolean).join("  ")
  const fill = tier.up ? `${plural(tier.blocks, "block")}, ${bytes(tier.bytes)} of ${bytes(tier.capacity)}` : "lost: the engine goes on without it"
  return el("div", {class: "tier", "data-up": String(tier.up)}, el("b", {}, tier.name), bar.node, el("span", {}, fill, moves && el("span", {class: "moves"}, `  ${moves}`)))
}
