// What was asked, and the answer below it: its text, how it ended, what it took, and what can be done with it.

const seconds = ms => ms < 1000 ? `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`
const counted = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`
const ENDS = {length: "at max tokens", stop: null}

/** One turn. `again` asks once more, `code` shows the request, `remedy` says what helps against a refusal: {label, go} or null. */
class Turn {
  constructor({mode, asked, again, code, remedy, cost}) {
    Object.assign(this, {mode, asked, again, remedy, cost})
    this.answer = null
    const given = () => mode === "chat" ? null : el("span", {class: "given"}, asked)
    this.text = el("div", {class: mode === "chat" ? "text" : "text plain"}, given())
    this.meta = el("dl", {class: "meta"})
    this.story = el("ul", {class: "story", hidden: true})
    this.trouble = el("div", {class: "trouble stack", role: "alert", hidden: true})
    this.againButton = el("button", {class: "button quiet", type: "button", onclick: again}, "Again")
    this.scores = el("button", {class: "button quiet", type: "button", "aria-pressed": "false", hidden: true, onclick: () => this.showTokens(this.tokens.node.hidden)}, "Probabilities")
    this.actions = el("div", {class: "row actions", hidden: true},
      copyButton(() => this.answer.text), this.againButton, this.scores, el("button", {class: "button quiet", type: "button", onclick: code}, "Code"))
    this.tokens = tokenView(given())
    this.tokens.node.hidden = true
    this.body = el("article", {class: "answer", "aria-label": "Answer", "aria-busy": "true"},
      this.text, this.tokens.node, this.trouble, this.meta, this.story, this.actions)
    this.node = el("div", {class: `turn ${mode}`}, mode === "chat" ? el("div", {class: "asked", role: "note", "aria-label": "You"}, asked) : null, this.body)
  }

  /** Show an answer as it is now. */
  show(answer) {
    this.answer = answer
    if (this.mode === "chat") showMarkdown(this.text, answer.text)
    else this.text.replaceChildren(this.text.firstChild, answer.text)
    if (answer.tokens.length) {
      this.tokens.update(answer.tokens)
      if (this.scores.hidden) { this.scores.hidden = false; this.showTokens(true) }
    }
    this.showMeta(answer)
  }

  showTokens(yes) {
    this.tokens.node.hidden = !yes
    this.text.hidden = yes
    this.scores.setAttribute("aria-pressed", String(yes))
  }

  showMeta(answer) {
    const {usage, timings, first, last, speed} = answer
    const cached = usage?.prompt_tokens_details?.cached_tokens
    const cost = usage && this.cost(usage)
    const server = timings && `In the server: waited ${seconds(timings.queue_ms)}, prompt ${seconds(timings.prefill_ms)}, answer ${seconds(timings.decode_ms)}.`
    const figures = [
      ["First token", first !== null && seconds(first), server],
      ["Speed", speed && `${speed.toFixed(speed < 100 ? 1 : 0)} tokens/s`, "Tokens after the first one, by the time they took."],
      ["Prompt", usage && counted(usage.prompt_tokens, "token") + (cached ? `, ${cached.toLocaleString("en")} cached` : ""), "With what the chat template adds. Cached: the server had their keys and values already."],
      ["Answer", usage && counted(usage.completion_tokens, "token")],
      ["Time", last !== null && seconds(last), server],
      ["Cost", cost != null && cost.toLocaleString("en", {maximumSignificantDigits: 3}), "By the prices in the settings."],
      ["End", answer.stopped ? "stopped by you" : ENDS[answer.finish]],
    ]
    this.meta.replaceChildren(...figures.filter(([, value]) => value).map(([name, value, title]) => el("div", {title}, el("dt", {}, name), el("dd", {}, value))))
  }

  /** The answer has ended; `trouble` is a Refusal if it ended badly. */
  end(trouble) {
    this.body.setAttribute("aria-busy", "false")
    this.actions.hidden = !this.answer?.text
    if (!trouble) return
    const remedy = this.remedy(trouble)
    this.trouble.hidden = false
    this.trouble.append(sentence(trouble.message), el("div", {class: "row"},
      el("button", {class: "button", type: "button", onclick: this.again}, "Try again"),
      remedy && el("button", {class: "button", type: "button", onclick: remedy.go}, remedy.label)))
  }

  /** What the server tells of this request. */
  tell(sentences) {
    this.story.replaceChildren(...sentences.map(sentence => el("li", {}, sentence)))
    this.story.hidden = !sentences.length
  }
}
