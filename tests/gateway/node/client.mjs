// Talks to a gateway as a Node program would; prints what it saw as JSON. Usage: node client.mjs URL TOKEN MODEL
import OpenAI from "openai";

const [url, token, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: token, maxRetries: 0 });
const ask = {
  model,
  messages: [{ role: "user", content: "Tell me of the quiet hill." }],
  max_tokens: 12,
  temperature: 0,
  actscope: true,
};

const chunks = [];
let usage = null;
let text = "";
const options = { include_usage: true };
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: options })) {
  usage = chunk.usage ?? usage;
  text += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.choices.length) chunks.push(chunk);
}

const helper = client.chat.completions.stream(ask);
const helperText = (await helper.finalChatCompletion()).choices[0].message.content;
const whole = await client.chat.completions.create(ask);

let errorCode = null;
try {
  await client.chat.completions.create({ ...ask, model: "no-such-model" });
} catch (error) {
  errorCode = error.code;
}

const payloads = chunks.filter((chunk) => chunk.choices[0].actscope).length;
const wholeText = whole.choices[0].message.content;
console.log(JSON.stringify({ chunks, usage, text, helperText, wholeText, errorCode, payloads }));
