/** A gateway's answer in the shape of docs/wire.md: two prompt tokens, " snow", half a character, its other half, the end. */
export const STREAM = [
  `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null,"actscope":{"v":1,"request":"chatcmpl-1","prompt_tokens":2,"probes":[{"id":"danger","site":"layers.3.resid_post"},{"id":"joy","site":"layers.3.resid_post"}],"tokens":{"start":0,"ids":[1,40],"text":["<|user|>"," fox"]},"scores":{"start":0,"rows":[[null,null]],"states":["mm"]}}}]}`,
  ": keep-alive",
  `data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":" snow"},"finish_reason":null,"actscope":{"v":1,"tokens":{"start":2,"ids":[512],"text":[" snow"]},"scores":{"start":1,"rows":[[0.123456789012,0]]}}}]}`,
  `data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":""},"finish_reason":null,"actscope":{"v":1,"tokens":{"start":3,"ids":[7],"text":["\\ufffd"],"bytes":{"0":"4oI="}},"scores":{"start":2,"rows":[[-0.5,1e-7]]}}}]}`,
  `data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"€"},"finish_reason":null,"actscope":{"v":1,"tokens":{"start":4,"ids":[8],"text":["\\ufffd"],"bytes":{"0":"rA=="}},"scores":{"start":3,"rows":[[0.75,null]],"states":["cx"]}}}]}`,
  `data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{},"finish_reason":"stop","actscope":{"v":1,"scores":{"start":4,"rows":[[null,null]],"states":["nn"]},"final":{"finish_reason":"stop","present":5,"computed":3}}}]}`,
  `data: {"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":2,"completion_tokens":3,"total_tokens":5}}`,
  "data: [DONE]",
]
  .map((line) => `${line}\n\n`)
  .join("");

/** The bytes of a text as a stream, cut every `size` bytes: anywhere, also inside a character. */
export function cut(text: string, size: number): ReadableStream<Uint8Array> {
  const bytes = new TextEncoder().encode(text);
  let at = 0;
  return new ReadableStream({
    pull(controller) {
      if (at >= bytes.length) return controller.close();
      controller.enqueue(bytes.slice(at, at + size));
      at += size;
    },
  });
}
