// @vitest-environment node
import { describe, expect, it } from "vitest";
import { Trace } from "../src/trace/trace";
import { applyEvent } from "../src/trace/watch";
import { readChunks } from "../src/wire/completion";
import { ScopeError } from "../src/wire/errors";
import { readEvents } from "../src/wire/sse";
import type { CompletionChunk } from "../src/wire/types";
import { cut, STREAM } from "./wire";

globalThis.requestAnimationFrame = () => 1;

async function chunks(text: string, size: number): Promise<CompletionChunk[]> {
  const list: CompletionChunk[] = [];
  for await (const chunk of readChunks(cut(text, size))) list.push(chunk);
  return list;
}

describe("the completion stream", () => {
  it.each([1, 2, 3, 7, 64, 100_000])(
    "gives the same chunks when the network cuts it every %i bytes",
    async (size) => {
      const whole = await chunks(STREAM, 100_000);
      expect(await chunks(STREAM, size)).toEqual(whole);
      expect(whole).toHaveLength(6);
    },
  );

  it("fills a trace with exactly the numbers and states that came", async () => {
    const trace = new Trace();
    for (const chunk of await chunks(STREAM, 11)) {
      const payload = chunk.choices?.[0]?.actscope;
      if (payload) trace.apply(payload);
    }
    const [danger, joy] = trace.columns;
    expect([0, 1, 2, 3, 4].map((p) => danger?.scoreAt(p))).toEqual([null, 0.123456789012, -0.5, 0.75, null]);
    expect([0, 1, 2, 3, 4].map((p) => joy?.stateAt(p))).toEqual([3, 1, 1, 4, 2]);
    expect(joy?.scoreAt(1)).toBe(0);
    expect(trace.units.texts).toEqual(["<|user|>", " fox", " snow", "€"]);
    expect(trace.final).toMatchObject({ present: 5, computed: 3 });
  });

  it("is a lost connection when it ends before [DONE]", async () => {
    await expect(chunks(STREAM.replace("data: [DONE]\n\n", ""), 50)).rejects.toThrow(/connection/);
  });

  it("raises an error that the gateway sends in the middle, with what to do", async () => {
    const broken = `data: {"error":{"message":"The engine failed.","type":"server_error","param":null,"code":null}}\n\n`;
    const error = await chunks(broken, 9).catch((problem: unknown) => problem);
    expect(error).toBeInstanceOf(ScopeError);
    expect(error).toMatchObject({ message: "The engine failed." });
    expect((error as ScopeError).hint).toContain("Regenerate");
  });
});

describe("the events of a request", () => {
  const EVENTS = [
    `event: token\nid: 1\ndata: {"v":1,"request":"r","prompt_tokens":0,"probes":[{"id":"a"}],"tokens":{"start":0,"ids":[1],"text":["x"]},"t":0}`,
    `event: probe_update\nid: 2\ndata: {"v":1,"scores":{"start":0,"rows":[[0.5]]}}`,
    `event: probe_final\nid: 3\ndata: {"v":1,"present":1,"computed":1,"probes":{}}`,
    `event: done\nid: 4\ndata: {"v":1,"finish_reason":"stop"}`,
  ];

  it("give the same trace when the whole stream is sent twice", async () => {
    const trace = new Trace();
    const reasons: (string | null)[] = [];
    for await (const event of readEvents(cut([...EVENTS, ...EVENTS].map((e) => `${e}\n\n`).join(""), 13))) {
      reasons.push(applyEvent(trace, event));
    }
    expect(trace.length).toBe(1);
    expect(trace.units.texts).toEqual(["x"]);
    expect(trace.columns[0]?.scoreAt(0)).toBe(0.5);
    expect(reasons[3]).toBe("stop");
  });
});
