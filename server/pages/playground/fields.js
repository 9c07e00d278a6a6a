// What a request says: the form's fields, and the body that follows from them. The two tables are JSON, which a test reads and holds
// against the server's schema; limits that are the server's to know are left to it, and its sentence is shown.

const FIELDS = [
  {"name": "max_tokens", "label": "Max tokens", "hint": "The longest answer; if empty the server decides."},
  {"name": "temperature", "label": "Temperature", "least": 0, "most": 2, "step": 0.05, "standard": 1, "hint": "0 always takes the likeliest token."},
  {"name": "top_p", "label": "Top p", "least": 0, "most": 1, "step": 0.01, "standard": 1, "hint": "Draw from the likeliest tokens that make up this share."},
  {"name": "top_k", "label": "Top k", "standard": 0, "extension": true, "hint": "Draw from so many of the likeliest tokens; 0: from all."},
  {"name": "min_p", "label": "Min p", "least": 0, "most": 1, "step": 0.01, "standard": 0, "extension": true, "hint": "Leave out tokens less likely than this share of the likeliest."},
  {"name": "presence_penalty", "label": "Presence penalty", "least": -2, "most": 2, "step": 0.1, "standard": 0},
  {"name": "frequency_penalty", "label": "Frequency penalty", "least": -2, "most": 2, "step": 0.1, "standard": 0},
  {"name": "repetition_penalty", "label": "Repetition penalty", "least": 0.1, "most": 10, "step": 0.05, "standard": 1, "extension": true},
  {"name": "seed", "label": "Seed", "hint": "The same seed gives the same answer."},
  {"name": "stop", "label": "Stop", "lines": true, "hint": "Texts that end the answer, one a line; \\n is a line break."}
]

const ENDPOINTS = {
  "chat": {"path": "v1/chat/completions", "scores": {"logprobs": true, "top_logprobs": 5}},
  "completion": {"path": "v1/completions", "scores": {"logprobs": 5}},
  "every": {"stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}}
}

/** The form, of what belongs to no single request too: model, system prompt, prices. */
class Form {
  constructor(place) {
    this.model = el("select", {class: "input", id: "model"})
    this.context = el("small", {})
    this.system = el("textarea", {class: "input", id: "system", rows: "3", placeholder: "How the model shall answer"})
    this.scores = el("input", {type: "checkbox", id: "scores"})
    this.systemField = labelled("System prompt", this.system)
    this.inputs = Object.fromEntries(FIELDS.map(field => [field.name, inputOf(field)]))
    this.prices = {prompt: priceInput("prompt"), cached: priceInput("cached"), output: priceInput("output")}
    place.append(
      labelled("Model", this.model, this.context),
      this.systemField,
      ...FIELDS.slice(0, 3).map(field => this.labelledField(field)),
      el("label", {class: "check"}, this.scores, el("span", {}, "Token probabilities", el("small", {class: "note"}, "Shows how likely each token was, and what else it could have been."))),
      el("details", {}, el("summary", {}, "More sampling"), el("div", {class: "stack"}, FIELDS.slice(3, 8).map(field => this.labelledField(field)))),
      ...FIELDS.slice(8).map(field => this.labelledField(field)),
      el("details", {}, el("summary", {}, "Prices"), el("div", {class: "stack"},
        el("p", {class: "note"}, "For a million tokens each. With them every answer shows what it cost."),
        [["Prompt", "prompt"], ["Prompt, cached", "cached"], ["Output", "output"]].map(([label, name]) => el("div", {class: "field beside"}, labelled(label, this.prices[name]))))))
  }

  labelledField(field) {
    const input = this.inputs[field.name]
    if (field.lines) return labelled(field.label, input, field.hint && el("small", {}, field.hint))
    const beside = [labelled(field.label, input), field.hint && el("small", {}, field.hint)]
    if (field.step === undefined) return el("div", {class: "field beside"}, beside)
    const slider = el("input", {type: "range", min: field.least, max: field.most, step: field.step, value: field.standard, "aria-label": `${field.label}, slider`})
    slider.addEventListener("input", () => { input.value = Number(slider.value) === field.standard ? "" : slider.value; input.removeAttribute("aria-invalid") })
    input.addEventListener("input", () => { slider.value = input.value.trim() === "" ? field.standard : input.value })
    return el("div", {class: "field beside"}, beside[0], slider, beside[1])
  }

  /** Everything but the model as it was at first. */
  reset() {
    for (const input of [this.system, ...Object.values(this.inputs), ...Object.values(this.prices)]) {
      input.value = ""
      input.dispatchEvent(new Event("input"))
    }
    this.scores.checked = false
  }

  /** What a request asks for besides its prompt. What is left empty is not sent; what is no number is, for the server to refuse. */
  options(mode) {
    const asked = {}
    for (const field of FIELDS) {
      const text = this.inputs[field.name].value
      if (text.trim() === "") continue
      asked[field.name] = field.lines ? linesOf(text) : numberOf(text.trim(), field)
    }
    if (this.scores.checked) Object.assign(asked, ENDPOINTS[mode].scores)
    return asked
  }

  /** The body of a request, to be sent to `ENDPOINTS[mode].path`. `content` is a prompt, or messages without the system's. */
  body(mode, content) {
    const system = this.system.value.trim() ? [{role: "system", content: this.system.value}] : []
    const asked = mode === "chat" ? {messages: [...system, ...content]} : {prompt: content}
    return {...(this.model.value ? {model: this.model.value} : {}), ...asked, ...this.options(mode), ...ENDPOINTS.every}
  }

  /** The cost of these tokens, or null where no price was given. */
  cost(usage) {
    const price = name => Number(this.prices[name].value.trim() || NaN)
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0
    const parts = [[usage.prompt_tokens - cached, price("prompt")], [cached, Number.isNaN(price("cached")) ? price("prompt") : price("cached")], [usage.completion_tokens, price("output")]]
    const known = parts.filter(([, each]) => !Number.isNaN(each))
    return known.length ? known.reduce((sum, [tokens, each]) => sum + tokens * each / 1e6, 0) : null
  }

  /** The input that a refusal is about, if it is one of these. */
  inputOf(param) {
    const name = (param ?? "").split(/[.[]/)[0]
    return this.inputs[name] ?? {model: this.model, max_completion_tokens: this.inputs.max_tokens}[name]
  }
}

function labelled(label, input, hint) {
  return el("label", {class: "field"}, el("span", {}, label), input, hint)
}

function inputOf(field) {
  const look = {class: "input", id: `field-${field.name}`, autocomplete: "off", spellcheck: "false"}
  const input = field.lines
    ? el("textarea", {...look, rows: "2"})
    : el("input", {...look, type: "text", inputmode: "decimal", placeholder: field.standard ?? ""})
  input.addEventListener("input", () => input.removeAttribute("aria-invalid"))
  return input
}

function priceInput(name) {
  return el("input", {class: "input", id: `price-${name}`, type: "text", inputmode: "decimal", autocomplete: "off"})
}

function linesOf(text) {
  return text.split("\n").filter(line => line !== "").map(line => line.replace(/\\([nt\\])/g, (_, sign) => ({n: "\n", t: "\t", "\\": "\\"})[sign]))
}

/** A number, or the text itself where it is none that JavaScript can hold. */
function numberOf(text, field) {
  const number = Number(text)
  if (!Number.isFinite(number)) return text
  if (Number.isInteger(number) && !Number.isSafeInteger(number)) throw new Refusal(`${field.label} is too large for this page, which counts to ${Number.MAX_SAFE_INTEGER}.`, {param: field.name})
  return number
}
