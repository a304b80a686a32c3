// Asks for a response as a Node program would; prints what it saw as JSON. Usage: node responses.mjs URL TOKEN MODEL
import OpenAI from "openai";

const [url, token, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: token, maxRetries: 0 });
const ask = { model, input: "Tell me of the quiet hill.", max_output_tokens: 12, temperature: 0, actscope: true };

const events = [];
let text = "";
for await (const event of await client.responses.create({ ...ask, stream: true })) {
  events.push(event);
  if (event.type === "response.output_text.delta") text += event.delta;
}

const helper = client.responses.stream(ask);
const helperText = (await helper.finalResponse()).output_text;
const whole = await client.responses.create(ask);

let errorParam = null;
try {
  await client.responses.create({ ...ask, previous_response_id: "resp_x" });
} catch (error) {
  errorParam = error.param;
}
console.log(JSON.stringify({ events, text, helperText, whole, errorParam }));
