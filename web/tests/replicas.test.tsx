import { act } from "react";
import { createRoot, type Root } from "react-dom/client";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { Info, Replica } from "../src/api/types";
import { Replicas } from "../src/panel/Replicas";
import { engine } from "../src/state/engine";

(globalThis as { IS_REACT_ACT_ENVIRONMENT?: boolean }).IS_REACT_ACT_ENVIRONMENT = true;

let root: Root;

const whole = { model: "m", pid: 1, device: "cpu", scores: "read", controls: "answer", probes: ["a", "b"] };

async function shown(replicas: Partial<Replica>[], expected = replicas.length) {
  const info = {
    replicas: replicas.map((one, replica) => ({ ...whole, id: `card-${replica}`, replica, ...one })),
    replicas_expected: expected,
  };
  engine.set({ state: "up", info: info as unknown as Info });
  await act(() => root.render(<Replicas />));
  return document.querySelector<HTMLDetailsElement>("[data-testid=replicas]");
}

beforeEach(() => {
  root = createRoot(document.body.appendChild(document.createElement("div")));
});

afterEach(async () => {
  await act(() => root.unmount());
  document.body.replaceChildren();
});

describe("the engines of a server", () => {
  it("are not shown for one engine that is whole", async () => {
    expect(await shown([{}])).toBeNull();
  });

  it("are listed where there are several, folded while all are whole", async () => {
    const box = await shown([{}, {}]);
    expect(box?.open).toBe(false);
    expect(box?.querySelector("summary")?.textContent).toBe("Engines scores of all 2");
    expect(box?.querySelectorAll("[data-testid=replica]").length).toBe(2);
  });

  it("say which one is not read, and why", async () => {
    const box = await shown([{}, { scores: "unreadable", why: "its ring is of another user" }]);
    expect(box?.open).toBe(true);
    expect(box?.querySelector("summary")?.textContent).toBe("Engines scores of 1 of 2");
    expect(box?.querySelector("[data-replica='1']")?.textContent).toContain(
      "not read: its ring is of another user",
    );
  });

  it("say how many were not found", async () => {
    const box = await shown([{}], 3);
    expect(box?.querySelector("summary")?.textContent).toBe("Engines scores of 1 of 3");
    expect(box?.textContent).toContain("2 more engines are not found on this machine");
  });
});
