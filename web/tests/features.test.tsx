import { act } from "react";
import { createRoot, type Root } from "react-dom/client";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { TokenReading } from "../src/reader/TokenReading";
import { newChat, send, turns } from "../src/state/chat";
import { engine } from "../src/state/engine";
import { isOpen } from "../src/state/turn";
import { Trace } from "../src/trace/trace";
import type { FeatureBlock } from "../src/wire/types";
import { cut } from "./wire";

(globalThis as { IS_REACT_ACT_ENVIRONMENT?: boolean }).IS_REACT_ACT_ENVIRONMENT = true;

let root: Root;
const frames: (() => void)[] = [];

beforeEach(() => {
  globalThis.requestAnimationFrame = (run) => frames.push(() => run(0));
  root = createRoot(document.body.appendChild(document.createElement("div")));
});

afterEach(async () => {
  await act(() => root.unmount());
  document.body.replaceChildren();
  vi.unstubAllGlobals();
  newChat();
});

const paint = () =>
  act(() => {
    for (const run of frames.splice(0)) run();
  });

function traceWith(features: FeatureBlock | null, probes: string[] = ["joy"]): Trace {
  const trace = new Trace(2);
  trace.apply({
    v: 1,
    probes: probes.map((id) => ({ id })),
    tokens: { start: 0, ids: [7, 8], text: ["a", "b"] },
    scores: { start: 0, rows: [probes.map(() => 0.5), probes.map(() => 0.25)] },
    ...(features && { features }),
  });
  return trace;
}

async function listed(trace: Trace, position: number): Promise<string[]> {
  await act(() => root.render(<TokenReading spot={{ trace, position }} beside={null} pinned={false} />));
  return [...document.querySelectorAll("[data-testid=features] li")].map((item) => item.textContent);
}

describe("the reader", () => {
  it("lists the five strongest features, the strongest first", async () => {
    const ids = [[143, 7, 99, 4, 12, 1], null];
    const trace = traceWith({ start: 0, ids, values: [[2.309, 1.5, 1, 0.5, 0.126, 0.1], null] });
    expect(await listed(trace, 0)).toEqual(["#143 2.31", "#7 1.50", "#99 1.00", "#4 0.50", "#12 0.13"]);
  });

  it("has no list where no features were computed, told, or asked for", async () => {
    const none = traceWith({ start: 0, ids: [null, []], values: [null, []] });
    expect(await listed(none, 0)).toEqual([]);
    expect(await listed(none, 1)).toEqual([]);
    expect(await listed(traceWith(null), 0)).toEqual([]);
    expect(document.querySelector("[data-testid=features]")).toBeNull();
  });

  it("says what is not a number", async () => {
    expect(await listed(traceWith({ start: 1, ids: [[3]], values: [[null]] }), 1)).toEqual(["#3 not finite"]);
  });

  it("gets features that come while it is open, also where there are no probes", async () => {
    const trace = traceWith(null, []);
    expect(await listed(trace, 1)).toEqual([]);
    trace.apply({ v: 1, features: { start: 1, ids: [[5, 6]], values: [[2, 1]] } });
    await paint();
    expect(document.querySelector("[data-testid=features]")?.textContent).toBe("#5 2.00#6 1.00");
  });
});

describe("a question", () => {
  const sae = { site: "layers.4.resid_post", name: "sae", k: 8, n_features: 64 };

  it.each([
    [sae, { features: true }],
    [null, true],
    [undefined, true],
  ])("asks for features where the engine has an SAE (%o)", async (has, asked) => {
    const info = { engine: { state: "up", model: "m", sae: has } };
    engine.set({ state: "up", info } as Parameters<typeof engine.set>[0]);
    const sent = vi.fn<(path: string, init: { body: string }) => Promise<Response>>(() =>
      Promise.resolve(new Response(cut("data: [DONE]\n\n", 50))),
    );
    vi.stubGlobal("fetch", sent);
    send("Hello");
    await vi.waitFor(() => expect(isOpen(turns.get().at(-1))).toBe(false));
    expect(JSON.parse(sent.mock.calls[0]?.[1].body ?? "{}")).toMatchObject({ actscope: asked });
  });
});
