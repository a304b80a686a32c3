import { act } from "react";
import { createRoot, type Root } from "react-dom/client";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { asProbe } from "../src/api/types";
import { Heatmap } from "../src/heatmap/Heatmap";
import { hover, pinned, unpin } from "../src/state/focus";
import { chooseBackground, probes, toggleUnderline } from "../src/state/probes";
import { Trace } from "../src/trace/trace";

(globalThis as { IS_REACT_ACT_ENVIRONMENT?: boolean }).IS_REACT_ACT_ENVIRONMENT = true;

let root: Root;
let trace: Trace;

const probe = (id: string) => asProbe({ id, site: "layers.3.resid_post", threshold: 0.5 });
const frame = () => act(() => new Promise<void>((done) => requestAnimationFrame(() => done())));
const tokens = () => [...document.querySelectorAll<HTMLElement>("[data-pos]")];
const press = (key: string) =>
  act(() =>
    document.activeElement?.dispatchEvent(
      new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }),
    ),
  );

beforeEach(async () => {
  probes.set([probe("danger"), probe("joy")]);
  chooseBackground("danger");
  trace = new Trace();
  trace.apply({
    v: 1,
    prompt_tokens: 1,
    probes: [{ id: "danger" }, { id: "joy" }],
    tokens: {
      start: 0,
      ids: [1, 2, 3, 4, 5],
      text: ["<|user|>", "a", " wolf", "\n", "<img src=x onerror=alert(1)>"],
    },
    scores: {
      start: 0,
      rows: [
        [null, null],
        [0, 0.2],
        [0.9, 0.1],
        [null, 0.3],
      ],
      states: ["mm", "cc", "cc", "nc"],
    },
  });
  const host = document.body.appendChild(document.createElement("div"));
  root = createRoot(host);
  await act(() => root.render(<Heatmap trace={trace} from={1} label="Answer" />));
  await frame();
});

afterEach(async () => {
  await act(() => root.unmount());
  unpin();
  document.body.replaceChildren();
});

describe("the heatmap", () => {
  it("gives zero, a score, never computed and pending four different looks", () => {
    expect(tokens().map((span) => span.className)).toEqual(["t", "t s28 over", "t never", "t pending"]);
  });

  it("marks a score that is exactly on the threshold, and none below", async () => {
    trace.apply({
      v: 1,
      scores: {
        start: 3,
        rows: [
          [0.5, 0],
          [0.4999, 0],
        ],
      },
    });
    await frame();
    expect(
      tokens()
        .slice(2)
        .map((span) => span.classList.contains("over")),
    ).toEqual([true, false]);
  });

  it("is painted by the new version of a probe when it is swapped", async () => {
    trace.apply({
      v: 1,
      probes: [{ id: "danger", since: 7 }, { id: "joy" }],
      scores: { start: 4, rows: [[1, 0]] },
    });
    await frame();
    expect(tokens().map((span) => span.className)).toEqual(["t never", "t never", "t never", "t s32 over"]);
  });

  it("shows a token's markup as text", () => {
    expect(document.querySelector("img")).toBeNull();
    expect(tokens()[3]?.textContent).toBe("<img src=x onerror=alert(1)>");
  });

  it("marks whitespace without changing the text that is copied", () => {
    expect([tokens()[2]?.dataset["marks"], tokens()[2]?.textContent]).toEqual(["↵", "\n"]);
  });

  it("repaints a pending token when its row arrives", async () => {
    trace.apply({ v: 1, scores: { start: 4, rows: [[1, 0]] } });
    await frame();
    expect(tokens()[3]?.className).toBe("t s32 over");
  });

  it("paints another probe when it is chosen, and draws underlines beside it", async () => {
    await act(() => chooseBackground("joy"));
    await act(() => toggleUnderline("danger"));
    expect(tokens()[1]?.className).toBe("t a11");
    await act(() => toggleUnderline("danger"));
  });

  const blocks = () => [...document.querySelectorAll<HTMLElement>(".block")];
  const append = async (text: string[]) => {
    trace.apply({ v: 1, tokens: { start: 5, ids: text.map(() => 9), text } });
    await frame();
  };

  it("starts a new block only at a line break, where the text breaks too", async () => {
    await append(Array.from({ length: 600 }, (_, i) => (i === 299 ? "\n" : " w")));
    expect(blocks().map((block) => block.children.length)).toEqual([304, 300]);
    expect(blocks().some((block) => "sameLine" in block.dataset)).toBe(false);
  });

  it("ends the block of a very long line at a sentence, and says that the line goes on", async () => {
    await append(Array.from({ length: 3_000 }, (_, i) => (i % 100 === 99 ? "." : " w")));
    expect(blocks().map((block) => block.children.length)).toEqual([1504, 1500]);
    expect(blocks().map((block) => "sameLine" in block.dataset)).toEqual([true, true]);
  });

  it("hatches the tokens of a request that the chosen probe did not read, and dots their underline", async () => {
    await act(() => probes.set([...probes.get(), probe("late")]));
    await act(() => chooseBackground("late"));
    expect(new Set(tokens().map(({ className }) => className))).toEqual(new Set(["t never"]));
    await act(() => chooseBackground("danger"));
    await act(() => toggleUnderline("late"));
    expect(tokens()[0]?.className).toBe("t a-none");
    await act(() => toggleUnderline("late"));
  });

  it("keeps the scale of the version that computed a score when its probe is replaced", async () => {
    const before = tokens().map(({ className }) => className);
    const replaced = asProbe({ id: "danger", since: 7, site: "layers.3.resid_post", range: [-50, 50] });
    await act(() => probes.set([replaced, probe("joy")]));
    expect(tokens().map(({ className }) => className)).toEqual(before);
  });
});

describe("the keyboard", () => {
  it("has exactly one tab stop, which follows the arrows", async () => {
    await act(() => tokens()[0]?.focus());
    await press("ArrowRight");
    await press("ArrowRight");
    await press("ArrowLeft");
    expect(tokens().map((span) => span.tabIndex)).toEqual([-1, 0, -1, -1]);
    expect(document.activeElement).toBe(tokens()[1]);
    expect(hover.get()?.position).toBe(2);
  });

  it("goes to the first and last token with Home and End, and not beyond", async () => {
    await act(() => tokens()[0]?.focus());
    await press("End");
    await press("ArrowRight");
    expect(hover.get()?.position).toBe(4);
    await press("Home");
    await press("ArrowLeft");
    expect(hover.get()?.position).toBe(1);
  });

  it("pins with Enter, carries the pin along, and lets go with Escape", async () => {
    await act(() => tokens()[0]?.focus());
    await press("Enter");
    expect(pinned.get()?.position).toBe(1);
    await press("ArrowRight");
    expect(pinned.get()?.position).toBe(2);
    await press("Escape");
    expect(pinned.get()).toBeNull();
  });

  it("hears a focused token described in words", async () => {
    await act(() => tokens()[1]?.focus());
    expect(tokens()[1]?.getAttribute("aria-label")).toBe(
      "␣wolf, position 2, danger 0.9000, at or over threshold",
    );
    await act(() => tokens()[2]?.focus());
    expect(tokens()[1]?.hasAttribute("role")).toBe(false);
    expect(tokens()[2]?.getAttribute("aria-label")).toContain("danger never computed");
  });
});
