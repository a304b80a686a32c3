import { act } from "react";
import { createRoot, type Root } from "react-dom/client";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Facts } from "../src/panel/Facts";
import { Trace } from "../src/trace/trace";
import { applyEvent } from "../src/trace/watch";

(globalThis as { IS_REACT_ACT_ENVIRONMENT?: boolean }).IS_REACT_ACT_ENVIRONMENT = true;

let root: Root;

async function coverage(counts: Record<string, number>) {
  const trace = new Trace(0);
  applyEvent(trace, { event: "probe_final", id: "1", data: JSON.stringify({ v: 1, ...counts, probes: {} }) });
  await act(() => root.render(<Facts trace={trace} />));
  return document.querySelector("[data-testid=fact-coverage]")?.textContent;
}

beforeEach(() => {
  root = createRoot(document.body.appendChild(document.createElement("div")));
});

afterEach(async () => {
  await act(() => root.unmount());
  document.body.replaceChildren();
});

describe("the coverage of a request", () => {
  it("counts the positions whose scores came with a cached prefix, where there are any", async () => {
    expect(await coverage({ present: 10, computed: 9, cached: 4 })).toBe("90.0 % (9 of 10, 4 cached)");
    expect(await coverage({ present: 10, computed: 9, cached: 0 })).toBe("90.0 % (9 of 10)");
    expect(await coverage({ present: 10, computed: 9 })).toBe("90.0 % (9 of 10)");
  });
});
