// openai for Node: chat, streams, .parse and the stream helper by zod, runTools whole and streamed, responses.
// Called as `node openai.mjs URL MODEL chosen|forced`.
import OpenAI from 'openai';
import { zodFunction, zodResponseFormat, zodTextFormat } from 'openai/helpers/zod';
import { ABOUT, BASE, CHOSEN, City, GREETING, KEY, MODEL, WEATHER, Weather, ask, getWeather, isCity, tell, wasAsked } from './asking.mjs';

const client = new OpenAI({ baseURL: BASE, apiKey: KEY, maxRetries: 0 });
const chat = client.chat.completions;
const settings = { model: MODEL, temperature: 0, max_completion_tokens: 80 };
const messages = (text) => [{ role: 'user', content: text }];

async function plain() {
  const answer = await chat.create({ ...settings, messages: messages(GREETING) });
  ask(answer.choices[0].message.content && answer.usage.completion_tokens);
}

async function stream() {
  const pieces = [];
  for await (const chunk of await chat.create({ ...settings, messages: messages(GREETING), stream: true })) {
    pieces.push(chunk.choices[0]?.delta.content ?? '');
  }
  const whole = await chat.create({ ...settings, messages: messages(GREETING) });
  ask(pieces.join('') === whole.choices[0].message.content);
}

async function parse() {
  const format = zodResponseFormat(City, 'city');
  const answer = await chat.parse({ ...settings, messages: messages(ABOUT), response_format: format });
  isCity(answer.choices[0].message.parsed);
}

async function stream_helper() {
  const format = zodResponseFormat(City, 'city');
  const helper = chat.stream({ ...settings, messages: messages(ABOUT), response_format: format });
  let deltas = 0;
  helper.on('content.delta', () => (deltas += 1));
  isCity((await helper.finalChatCompletion()).choices[0].message.parsed);
  ask(deltas > 1);
}

// Left to the model, the runner goes on until an answer; where one function is named, it ends after the call.
function tools() {
  const tool = zodFunction({ name: 'get_weather', description: 'The weather in a city.', parameters: Weather, function: getWeather });
  const forced = { tool_choice: { type: 'function', function: { name: 'get_weather' } } };
  return { ...settings, messages: messages(WEATHER), tools: [tool], ...(CHOSEN ? {} : forced) };
}

async function runTools() {
  const runner = chat.runTools(tools());
  await runner.done();
  wasAsked(CHOSEN ? await runner.finalContent() : runner.messages.at(-1).content);
}

async function runTools_streamed() {
  const runner = chat.runTools({ ...tools(), stream: true });
  let chunks = 0;
  runner.on('chunk', () => (chunks += 1));
  await runner.done();
  wasAsked(CHOSEN ? await runner.finalContent() : runner.messages.at(-1).content);
  ask(chunks > 1);
}

async function responses() {
  const body = { model: MODEL, temperature: 0, max_output_tokens: 80 };
  const first = await client.responses.create({ ...body, input: GREETING });
  ask(first.output_text);
  const helper = client.responses.stream({ ...body, input: GREETING });
  ask((await helper.finalResponse()).output_text === first.output_text);
  const text = { format: zodTextFormat(City, 'city') };
  isCity((await client.responses.parse({ ...body, input: ABOUT, text })).output_parsed);
}

await tell('openai', plain, stream, parse, stream_helper, runTools, runTools_streamed, responses);
