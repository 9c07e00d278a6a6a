// One answer as it comes: server-sent events to text, tokens, usage and times (docs/sse.md).

/** The chunks of a stream. Raises Refusal where it ends with an error, or without an end. */
async function* chunksOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ""
  for (;;) {
    const {done, value} = await reader.read().catch(error => {
      if (error.name === "AbortError") throw error
      throw new Refusal("The connection broke before the answer was complete.")
    })
    if (done) throw new Refusal("The stream ended before the answer was complete.")
    const events = (rest + value).split("\n\n")
    rest = events.pop()
    for (const event of events) {
      const data = /^data: (.*)$/m.exec(event)?.[1]
      if (data === "[DONE]") return
      if (data === undefined) continue
      const chunk = JSON.parse(data)
      if (chunk.error) throw new Refusal(chunk.error.message, chunk.error)
      yield chunk
    }
  }
}

/** What is known of an answer so far. Times are in milliseconds of this page's clock, from the moment the request was sent. */
class Answer {
  constructor(mode) {
    this.mode = mode
    this.id = null
    this.text = ""
    this.tokens = [] // {text, name, logprob, top: [{name, logprob}]}, where probabilities were asked for
    this.usage = null
    this.timings = null
    this.finish = null
    this.stopped = false
    this.trouble = null
    this.begun = performance.now()
    this.first = null
    this.last = null
    this._decoder = new TextDecoder()
  }

  /** Take a chunk in. */
  add(chunk) {
    this.id ??= chunk.id
    this.usage = chunk.usage ?? this.usage
    this.timings = chunk.timings ?? this.timings
    const choice = chunk.choices[0]
    if (!choice) return
    this.finish = choice.finish_reason ?? this.finish
    const text = this.mode === "chat" ? choice.delta.content ?? "" : choice.text
    if (text || choice.logprobs) {
      this.last = performance.now() - this.begun
      this.first ??= this.last
    }
    this.text += text
    if (choice.logprobs) this.tokens.push(...(this.mode === "chat" ? choice.logprobs.content.map(chatToken) : completionTokens(choice.logprobs)).map(token => this._spelled(token)))
  }

  /** Tokens a second: the server's figure at the end, until then this page's. */
  get speed() {
    if (this.timings) return this.timings.decode_tokens_per_second ?? null
    const tokens = (this.usage?.completion_tokens ?? 0) - 1
    return tokens > 0 && this.last > this.first ? 1000 * tokens / (this.last - this.first) : null
  }

  /** A character whose bytes are several tokens is text of the last of them; the name of a token is its own. */
  _spelled({bytes, logprob, top}) {
    const others = top.map(each => ({name: shownBytes(each.bytes), logprob: each.logprob}))
    return {text: this._decoder.decode(Uint8Array.from(bytes), {stream: true}), name: shownBytes(bytes), logprob, top: others}
  }
}

const chatToken = ({bytes, logprob, top_logprobs}) => ({bytes, logprob, top: top_logprobs})

function completionTokens({tokens, token_logprobs, top_logprobs}) {
  return tokens.map((token, at) => ({
    bytes: bytesOf(token),
    logprob: token_logprobs[at],
    top: Object.entries(top_logprobs[at] ?? {}).map(([name, logprob]) => ({bytes: bytesOf(name), logprob})),
  }))
}

/** The bytes of a token by its name; part of a character is named `bytes:\xf0\x9f`. */
function bytesOf(name) {
  const parts = /^bytes:((?:\\x[0-9a-f]{2})+)$/.exec(name)
  return parts ? parts[1].split("\\x").slice(1).map(hex => parseInt(hex, 16)) : [...new TextEncoder().encode(name)]
}

function shownBytes(bytes) {
  try {
    return new TextDecoder("utf-8", {fatal: true}).decode(Uint8Array.from(bytes))
  } catch {
    return bytes.map(byte => `\\x${byte.toString(16).padStart(2, "0")}`).join("")
  }
}
