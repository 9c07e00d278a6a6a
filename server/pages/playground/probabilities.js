// An answer as its tokens, each in a colour that says how unexpected it was; what else it could have been is shown at the one that is
// pointed at, touched, or reached with the arrow keys.

const percent = logprob => { const share = 100 * Math.exp(logprob); return share >= 99.95 ? "100 %" : share >= 0.1 ? `${share.toFixed(1)} %` : "< 0.1 %" }
const visible = text => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ | $/g, "␣") || "∅"

/** The tokens of an answer, in a node that takes further ones by `update`; behind the text that was given, if they continue one. */
function tokenView(given) {
  const tip = el("div", {class: "tip", role: "tooltip", id: `tip-${++tokenView.count}`, hidden: true})
  const list = el("div", {class: "tokens", role: "group", "aria-label": "Tokens; the arrow keys move between them"})
  const node = el("div", {class: "token-view"}, given, list, tip)
  const tokens = []
  const at = event => [...list.children].indexOf(event.target.closest(".token"))

  function show(number) {
    const token = tokens[number]
    if (!token) return
    const span = list.children[number]
    const likeliest = Math.max(...token.top.map(each => each.logprob), token.logprob)
    const others = token.top.some(each => each.name === token.name) ? token.top : [...token.top, token]
    const rows = others.toSorted((a, b) => b.logprob - a.logprob).map(({name, logprob}) => {
      const bar = el("i", {"aria-hidden": "true"})
      bar.style.setProperty("--share", Math.exp(logprob - likeliest))
      return el("li", {class: name === token.name ? "chosen" : null}, el("code", {}, visible(name)), el("span", {}, percent(logprob)), bar)
    })
    tip.replaceChildren(el("ol", {}, rows))
    tip.hidden = false
    const frame = node.getBoundingClientRect()
    const place = span.getClientRects()[0] ?? span.getBoundingClientRect()
    tip.style.setProperty("left", `${Math.max(0, Math.min(place.left - frame.left, frame.width - tip.offsetWidth))}px`)
    tip.style.setProperty("top", `${place.bottom - frame.top + 6}px`)
    for (const other of list.querySelectorAll("[aria-describedby]")) other.removeAttribute("aria-describedby")
    span.setAttribute("aria-describedby", tip.id)
  }

  const hide = () => { tip.hidden = true }
  list.addEventListener("pointerover", event => show(at(event)))
  list.addEventListener("pointerleave", hide)
  list.addEventListener("focusin", event => show(at(event)))
  list.addEventListener("focusout", hide)
  list.addEventListener("keydown", event => {
    if (event.key === "Escape" && !tip.hidden) { hide(); event.stopPropagation(); return }
    const next = {ArrowRight: at(event) + 1, ArrowLeft: at(event) - 1, Home: 0, End: tokens.length - 1}[event.key]
    const span = next === undefined ? null : list.children[next]
    if (!span) return
    event.preventDefault()
    for (const other of list.querySelectorAll("[tabindex='0']")) other.tabIndex = -1
    span.tabIndex = 0
    span.focus()
  })

  return {
    node,
    /** Show these tokens; those that it has stay. */
    update(all) {
      for (const token of all.slice(tokens.length)) {
        tokens.push(token)
        const span = el("span", {class: "token", tabindex: tokens.length === 1 ? "0" : "-1"}, token.text.includes("\n") ? token.text.replaceAll("\n", "↵\n") : token.text || "·")
        span.style.setProperty("--doubt", 1 - Math.exp(token.logprob))
        list.append(span)
      }
    },
  }
}
tokenView.count = 0
