import { afterEach, describe, expect, it, vi } from "vitest";
import { newChat, send, turns } from "../src/state/chat";
import { engine } from "../src/state/engine";
import { isOpen } from "../src/state/turn";
import { cut } from "./wire";

const ANSWER = [
  `data: {"id":"cmpl-1","choices":[{"index":0,"text":" upon","finish_reason":null,"actscope":{"v":1,"request":"cmpl-1-0","prompt_tokens":1,"probes":[{"id":"joy","site":"s","since":1}],"tokens":{"start":0,"ids":[1,2],"text":["Once"," upon"]},"scores":{"start":0,"rows":[[0.5]]}}}]}`,
  `data: {"id":"cmpl-1","choices":[{"index":0,"text":" a","finish_reason":"length","actscope":{"v":1,"tokens":{"start":2,"ids":[3],"text":[" a"]},"scores":{"start":1,"rows":[[0.25],[null]],"states":["c","n"]},"final":{"finish_reason":"length","present":3,"computed":2}}}]}`,
  "data: [DONE]",
]
  .map((line) => `${line}\n\n`)
  .join("");

function engineWith(hasChatTemplate: boolean | null): void {
  const info = { engine: { state: "up", model: "m", has_chat_template: hasChatTemplate } };
  engine.set({ state: "up", info } as Parameters<typeof engine.set>[0]);
}

async function ask(text: string): Promise<[path: string, body: Record<string, unknown>]> {
  const sent = vi.fn<(path: string, init: { body: string }) => Promise<Response>>(() =>
    Promise.resolve(new Response(cut(ANSWER, 50))),
  );
  vi.stubGlobal("fetch", sent);
  send(text);
  await vi.waitFor(() => expect(isOpen(turns.get().at(-1))).toBe(false));
  const [path, { body }] = sent.mock.calls[0] ?? ["", { body: "{}" }];
  return [path, JSON.parse(body) as Record<string, unknown>];
}

afterEach(() => {
  newChat();
  vi.unstubAllGlobals();
});

describe("a question", () => {
  it("to a model without a chat template is a text to continue, the last message alone", async () => {
    engineWith(false);
    await ask("Before");
    const [path, body] = await ask("Once");
    expect(path).toBe("/v1/completions");
    expect(body).toMatchObject({ model: "m", prompt: "Once", stream: true, actscope: true });
    expect(body).not.toHaveProperty("messages");
    const turn = turns.get().at(-1);
    expect([turn?.answer, turn?.status, turn?.finish]).toEqual([" upon a", "done", "length"]);
    expect(turn?.trace.column("joy")?.scoreAt(1)).toBe(0.25);
  });

  it.each([true, null])("to any other model is a chat (has_chat_template %s)", async (template) => {
    engineWith(template);
    const [path, body] = await ask("Hello");
    expect(path).toBe("/v1/chat/completions");
    expect(body).toMatchObject({ messages: [{ role: "user", content: "Hello" }] });
    expect(body).not.toHaveProperty("prompt");
  });
});
