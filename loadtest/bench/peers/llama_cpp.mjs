// llama.cpp behind the part of OpenAI's API that a measurement asks, through node-llama-cpp, whose prebuilt libraries use what the
// processor has (AVX2, AVX-512, AMX). Every answer is greedy and as long as it is asked to be.
//
//     node llama_cpp.mjs LIBRARY/dist/index.js MODEL.gguf PORT
import http from "node:http";
import os from "node:os";
import {pathToFileURL} from "node:url";

const [library, modelPath, port] = process.argv.slice(2);
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(library).href);
const threads = os.availableParallelism();
const SEQUENCES = 8, CONTEXT = 4608; // of each sequence; more requests wait

const llama = await getLlama({gpu: false, build: "never", maxThreads: threads, logLevel: LlamaLogLevel.warn});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({sequences: SEQUENCES, contextSize: CONTEXT, threads, batchSize: 512, flashAttention: true});
const free = Array.from({length: SEQUENCES}, () => context.getSequence()), waiting = [];
const take = () => free.length ? Promise.resolve(free.pop()) : new Promise((resolve) => waiting.push(resolve));
const give = (sequence) => waiting.length ? waiting.shift()(sequence) : free.push(sequence);

async function* generate(tokens, limit) {
    const sequence = await take();
    try {
        await sequence.clearHistory();
        let made = 0;
        for await (const token of sequence.evaluate(tokens, {temperature: 0, yieldEogToken: true})) {
            yield model.detokenize([token]) || " ";
            if (++made >= limit) return;
        }
    } finally {
        give(sequence);
    }
}

async function complete(request, response) {
    let raw = "";
    for await (const part of request) raw += part;
    const {prompt, max_tokens: limit = 16, stream = false} = JSON.parse(raw), tokens = model.tokenize(prompt), texts = [];
    const event = (content) => response.write(`data: ${JSON.stringify(content)}\n\n`);
    if (stream) response.writeHead(200, {"content-type": "text/event-stream"});
    for await (const text of generate(tokens, limit)) {
        texts.push(text);
        if (stream) event({choices: [{index: 0, text, finish_reason: null}]});
    }
    const usage = {prompt_tokens: tokens.length, completion_tokens: texts.length, total_tokens: tokens.length + texts.length};
    const end = {index: 0, text: "", finish_reason: "length"};
    if (stream) {
        event({choices: [end], usage});
        return response.end("data: [DONE]\n\n");
    }
    response.writeHead(200, {"content-type": "application/json"});
    response.end(JSON.stringify({choices: [{...end, text: texts.join("")}], usage}));
}

http.createServer((request, response) => {
    if (request.method === "POST") return complete(request, response);
    response.writeHead(200, {"content-type": "application/json"});
    response.end(JSON.stringify({object: "list", data: [{id: "model", object: "model"}]}));
}).listen(Number(port), "127.0.0.1");
