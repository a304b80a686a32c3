// Talks to a gateway with the AI SDK; prints what it saw as JSON. Usage: node ai_sdk.mjs BASE_URL TOKEN MODEL
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const [baseURL, apiKey, name] = process.argv.slice(2);
const transformRequestBody = (body) => ({ ...body, actscope: true });
const provider = createOpenAICompatible({ name: "actscope", baseURL, apiKey, transformRequestBody });
const asked = {
  model: provider.chatModel(name),
  prompt: "Tell me about a fox in the snow",
  maxOutputTokens: 12,
  temperature: 0,
  maxRetries: 0,
};

const whole = await generateText(asked);
const stream = streamText({ ...asked, includeRawChunks: true });
let text = "";
let payloads = 0;
for await (const part of stream.fullStream) {
  if (part.type === "error") throw part.error;
  if (part.type === "text-delta") text += part.text;
  if (part.type === "raw" && part.rawValue.choices?.[0]?.actscope) payloads += 1;
}
let status = null;
try {
  await generateText({ ...asked, model: provider.chatModel("no-such-model") });
} catch (error) {
  status = error.statusCode;
}
const seen = {
  whole: { id: whole.response.id, text: whole.text, usage: whole.usage, scores: whole.response.body.choices[0].actscope },
  stream: { id: (await stream.response).id, text, payloads },
  status,
};
console.log(JSON.stringify(seen));
