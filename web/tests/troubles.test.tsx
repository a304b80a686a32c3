import { act } from "react";
import { createRoot, type Root } from "react-dom/client";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { Info } from "../src/api/types";
import { Troubles } from "../src/page/Troubles";
import { engine } from "../src/state/engine";

(globalThis as { IS_REACT_ACT_ENVIRONMENT?: boolean }).IS_REACT_ACT_ENVIRONMENT = true;

let root: Root;

beforeEach(() => {
  root = createRoot(document.body.appendChild(document.createElement("div")));
});

afterEach(async () => {
  await act(() => root.unmount());
  document.body.replaceChildren();
  engine.set({ state: "connecting" });
});

async function shown(troubles: Info["troubles"]): Promise<string | undefined> {
  engine.set({ state: "up", info: { troubles } as Info });
  await act(() => root.render(<Troubles />));
  return document.querySelector("[data-testid=troubles]")?.textContent;
}

it("says what was lost and what to do, and nothing where nothing was", async () => {
  expect(await shown([])).toBeUndefined();
  const lost = {
    name: "reader_missed_rows",
    kind: "loss",
    value: 1200,
    help: "Rows.",
    todo: "More.",
  } as const;
  expect(await shown([lost])).toBe("Something was lost or is in doubt: reader_missed_rows1,200: Rows. More.");
});
