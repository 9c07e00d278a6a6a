// Vercel's ai over @ai-sdk/openai-compatible and @ai-sdk/openai: text, streams, objects by zod, a loop of tools.
// Called as `node ai.mjs URL MODEL chosen|forced`.
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { Output, generateText, isStepCount, streamText, tool } from 'ai';
import { ABOUT, BASE, CHOSEN, City, GREETING, KEY, MODEL, WEATHER, Weather, ask, getWeather, isCity, tell, wasAsked } from './asking.mjs';

const here = createOpenAICompatible({ name: 'headrace', baseURL: BASE, apiKey: KEY, supportsStructuredOutputs: true, includeUsage: true });
const openai = createOpenAI({ baseURL: BASE, apiKey: KEY });
const settings = { model: here(MODEL), temperature: 0, maxOutputTokens: 80, maxRetries: 0 };

async function plain() {
  const answer = await generateText({ ...settings, prompt: GREETING });
  ask(answer.text && answer.usage.outputTokens);
}

async function stream() {
  const result = streamText({ ...settings, prompt: GREETING });
  let text = '';
  for await (const piece of result.textStream) text += piece;
  ask(text === (await generateText({ ...settings, prompt: GREETING })).text);
  ask((await result.usage).outputTokens);
}

async function object() {
  isCity((await generateText({ ...settings, prompt: ABOUT, output: Output.object({ schema: City }) })).output);
}

async function object_streamed() {
  const result = streamText({ ...settings, prompt: ABOUT, output: Output.object({ schema: City }) });
  let parts = 0;
  for await (const part of result.partialOutputStream) parts += part ? 1 : 0;
  ask(parts > 1);
  isCity(await result.output);
}

const loop = (model) => ({
  ...settings,
  model,
  prompt: WEATHER,
  tools: { get_weather: tool({ description: 'The weather in a city.', inputSchema: Weather, execute: getWeather }) },
  stopWhen: isStepCount(3),
  prepareStep: ({ stepNumber }) => (CHOSEN ? {} : { toolChoice: stepNumber === 0 ? { type: 'tool', toolName: 'get_weather' } : 'none' }),
});

async function tool_loop() {
  const answer = await generateText(loop(here(MODEL)));
  ask(answer.steps.length === 2);
  wasAsked(answer.text);
}

async function tool_loop_streamed() {
  const result = streamText(loop(here(MODEL)));
  const kinds = new Set();
  for await (const part of result.fullStream) kinds.add(part.type);
  ask(['tool-input-delta', 'tool-call', 'tool-result', 'text-delta'].every((kind) => kinds.has(kind)), [...kinds]);
  wasAsked(await result.text);
}

async function responses() {
  const model = openai(MODEL); // it speaks /v1/responses unless .chat() is asked for
  isCity((await generateText({ ...settings, model, prompt: ABOUT, output: Output.object({ schema: City }) })).output);
  wasAsked((await generateText(loop(model))).text);
}

await tell('ai', plain, stream, object, object_streamed, tool_loop, tool_loop_streamed, responses);
