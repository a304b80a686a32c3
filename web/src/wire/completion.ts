import { addressOf } from "../lib/address";
import { fromDetail, fromResponse, networkLost } from "./errors";
import { readEvents } from "./sse";
import type { ChatRequest, CompletionChunk, TextRequest } from "./types";

/** Yields the chunks of one streamed completion, optionally with features. A stream that ends before `[DONE]` is a lost connection. */
export async function* streamCompletion(
  request: ChatRequest | TextRequest,
  signal: AbortSignal,
  features = false,
): AsyncGenerator<CompletionChunk> {
  const path = "prompt" in request ? "/v1/completions" : "/v1/chat/completions";
  const response = await fetch(addressOf(path), {
    method: "POST",
    credentials: "same-origin",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      ...request,
      stream: true,
      stream_options: { include_usage: true },
      actscope: features ? { features } : true,
    }),
    signal,
  });
  if (!response.ok || response.body === null) throw await fromResponse(response);
  yield* readChunks(response.body);
}

export async function* readChunks(body: ReadableStream<Uint8Array>): AsyncGenerator<CompletionChunk> {
  for await (const { data } of readEvents(body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data) as CompletionChunk;
    if (chunk.error) throw fromDetail(chunk.error, 502);
    yield chunk;
  }
  throw networkLost();
}
