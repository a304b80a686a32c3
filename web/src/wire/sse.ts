import { EventSourceParserStream } from "eventsource-parser/stream";

export interface ServerEvent {
  event: string;
  id: string | null;
  data: string;
}

/** Yields the server-sent events of a response body in order, however the bytes were split in transit. */
export async function* readEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<ServerEvent> {
  const events = body
    .pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>)
    .pipeThrough(new EventSourceParserStream());
  const reader = events.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield { event: value.event ?? "message", id: value.id ?? null, data: value.data };
    }
  } finally {
    // Cancelling also closes the connection if the consumer stops early.
    await reader.cancel().catch(() => undefined);
  }
}
