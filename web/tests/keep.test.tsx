import { act } from "react";
import { createRoot, type Root } from "react-dom/client";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { api } from "../src/api/client";
import { KeepButton } from "../src/chat/KeepButton";
import { keeps, readRecording, recording } from "../src/state/keep";

(globalThis as { IS_REACT_ACT_ENVIRONMENT?: boolean }).IS_REACT_ACT_ENVIRONMENT = true;

const KEPT = {
  request: "r1",
  state: "keeping",
  running: true,
  rows: 1200,
  missing: 0,
  forgotten: [],
  dropped: [],
};

let root: Root;

/** The gateway, for this test: its answer to each request, and what it was asked. */
function gateway(status: number, body: unknown) {
  const answer = () => {
    const response = new Response(null, { status });
    return Promise.resolve(status < 400 ? { data: body, response } : { error: body, response });
  };
  vi.spyOn(api, "GET").mockImplementation(answer as unknown as typeof api.GET);
  return vi.spyOn(api, "POST").mockImplementation(answer as unknown as typeof api.POST);
}

const show = (running: boolean, request = "r1") =>
  act(() => root.render(<KeepButton request={request} running={running} />));
const button = () => document.querySelector("button");
const state = () => document.querySelector<HTMLElement>("[data-testid=keep]")?.dataset["state"];
const press = () => act(async () => Promise.resolve(button()?.click()));
const refusal = (code: string) => ({ error: { message: `said: ${code}`, type: "x", param: null, code } });

beforeEach(() => {
  keeps.set(new Map());
  recording.set(true);
  root = createRoot(document.body.appendChild(document.createElement("div")));
});

afterEach(async () => {
  await act(() => root.unmount());
  document.body.replaceChildren();
  vi.restoreAllMocks();
});

describe("the keep button", () => {
  it("is not there when the server does not record, nor before the request has a name", async () => {
    await show(true, "");
    expect(button()).toBeNull();
    await act(() => Promise.resolve(recording.set(false)));
    await show(true);
    expect(button()).toBeNull();
  });

  it("marks the request, says so while it runs, and that it is kept when it has ended", async () => {
    const asked = gateway(200, KEPT);
    await show(true);
    expect(button()?.textContent).toBe("Keep");
    button()?.focus();
    await press();
    await vi.waitFor(() => expect(state()).toBe("keeping"));
    expect(asked.mock.calls[0]).toMatchObject([
      "/v1/actscope/requests/{id}/mark",
      { params: { path: { id: "r1" } } },
    ]);
    await show(false);
    expect([state(), button()?.textContent]).toEqual(["kept", "Kept"]);
    expect(document.activeElement).toBe(button()); // the keyboard stays where it was
    await press();
    expect(asked).toHaveBeenCalledTimes(1);
  });

  it("says what had been forgotten", async () => {
    gateway(200, { ...KEPT, state: "kept", running: false, rows: 8, missing: 5 });
    await show(false);
    await press();
    await vi.waitFor(() => expect(state()).toBe("kept"));
    expect(document.querySelector("[role=status]")?.textContent).toContain("8 positions; 5 had left");
  });

  it.each([
    [410, "gone", "late", "Too late to keep"],
    [404, "request_not_found", "late", "Too late to keep"],
    [409, "not_recording", "off", "Not recording"],
  ])("says why it cannot (%s %s)", async (status, code, expected, words) => {
    gateway(status, refusal(code));
    await show(false);
    await press();
    await vi.waitFor(() => expect(state()).toBe(expected));
    expect(button()?.textContent).toBe(words);
    expect(button()?.title).toBe(`said: ${code}`);
  });

  it("can be pressed again after a failure", async () => {
    const broken = gateway(503, refusal("recording_failed"));
    await show(false);
    await press();
    await vi.waitFor(() => expect(state()).toBe("failed"));
    expect(broken).toHaveBeenCalledTimes(1);
    gateway(200, KEPT);
    await press();
    await vi.waitFor(() => expect(state()).toBe("kept"));
  });

  it("can be pressed again after the connection was lost", async () => {
    vi.spyOn(api, "POST").mockRejectedValue(new TypeError("fetch failed"));
    await show(false);
    await press();
    await vi.waitFor(() => expect(state()).toBe("failed"));
    expect(button()?.title).toContain("connection to the gateway was lost");
  });
});

describe("whether the server records", () => {
  it.each([
    [200, { recording: true, failure: null }, true],
    [200, { recording: true, failure: "disk full" }, false],
    [200, { recording: false }, false],
    [502, refusal("engine_failed"), false],
  ])("is read from its own words (%s %o)", async (status, body, expected) => {
    gateway(status, body);
    await readRecording();
    expect(recording.get()).toBe(expected);
  });
});
