// What the scripts for Node share; the same as asking.py.
import { readFileSync } from 'node:fs';
import { z } from 'zod';

const [url, model, calls] = process.argv.slice(2);
export const BASE = `${url}/v1`;
export const MODEL = model;
export const KEY = 'unused';
export const CHOSEN = calls === 'chosen';
export const GREETING = 'Say hello in three words.';
export const ABOUT = 'Paris is a city in France with about 2100000 inhabitants. Describe it.';
export const WEATHER = 'What is the weather in Paris? Use the tool, then answer in one short sentence.';

const CITIES = ['Paris', 'Rome'];
export const City = z.object({
  name: z.enum(CITIES),
  country: z.enum(['France', 'Italy']),
  inhabitants: z.number().int().min(0).max(99999999),
});
export const Weather = z.object({ city: z.enum(CITIES) });

const asked = [];
export function getWeather({ city }) {
  asked.push(city);
  return `18 degrees and sunny in ${city}`;
}

export function ask(truth, what = 'it is not so') {
  if (!truth) throw new Error(typeof what === 'string' ? what : JSON.stringify(what));
}

export function isCity(city) {
  const { name, country } = City.parse(city);
  ask(!CHOSEN || (name === 'Paris' && country === 'France'), city);
}

export function wasAsked(answer) {
  const cities = asked.splice(0);
  ask(cities.length, `no call; the answer is ${answer}`);
  ask(!CHOSEN || cities.includes('Paris'), cities);
  ask(answer && (!CHOSEN || /18|sunny/.test(answer)), `after the call: ${answer}`);
}

export async function tell(name, ...checks) {
  const { version } = JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url)));
  console.log(JSON.stringify({ package: name, version }));
  for (const check of checks) {
    asked.splice(0);
    const begun = performance.now();
    const line = { check: check.name };
    try {
      await check();
    } catch (error) {
      console.error(error);
      line.trouble = `${error.name}: ${error.message}`.slice(0, 2000);
    }
    console.log(JSON.stringify({ ...line, seconds: Math.round((performance.now() - begun) / 10) / 100 }));
  }
}
