import { describe, expect, it } from "vitest";
import { entropyAtLeast } from "../src/trace/chances";
import { Trace } from "../src/trace/trace";
import type { TokenLogprob } from "../src/wire/types";

globalThis.requestAnimationFrame = () => 1;

const bytesOf = (text: string) => [...new TextEncoder().encode(text)];
const said = (token: string, p: number, bytes = bytesOf(token)): TokenLogprob => ({
  token,
  logprob: Math.log(p),
  bytes,
  top_logprobs: [{ token, logprob: Math.log(p) }],
});

function answering(...text: string[]): Trace {
  const trace = new Trace();
  const ids = text.map((_, i) => i);
  trace.apply({
    v: 1,
    prompt_tokens: 1,
    tokens: { start: 0, ids: [9, ...ids], text: ["<|user|>", ...text] },
  });
  return trace;
}

describe("the probabilities of an answer", () => {
  it("belong to its tokens in order, and the prompt has none", () => {
    const trace = answering("a", " fox");
    trace.addChances([said("a", 0.5)]);
    trace.addChances([said(" fox", 0.25)]);
    expect([0, 1, 2, 3].map((p) => trace.chanceAt(p)?.logprob)).toEqual([
      undefined,
      Math.log(0.5),
      Math.log(0.25),
      undefined,
    ]);
  });

  it("wait for tokens that come after them", () => {
    const trace = answering("a");
    trace.addChances([said("a", 0.5), said("b", 0.25)]);
    expect(trace.chanceAt(2)).toBeNull();
    trace.apply({ v: 1, tokens: { start: 2, ids: [3], text: ["b"] } });
    expect(trace.chanceAt(2)?.logprob).toBe(Math.log(0.25));
  });

  it("are of a part of a character by its bytes", () => {
    const trace = answering("a");
    const block = { start: 2, ids: [3], text: ["\ufffd"], bytes: { 0: btoa("\xe4") } };
    trace.apply({ v: 1, tokens: block });
    trace.addChances([said("a", 0.5), said("\ufffd", 0.1, [0xe4])]);
    expect(trace.chanceAt(2)?.logprob).toBe(Math.log(0.1));
  });

  it("are unknown from the first that is of another token: none is shown beside a token that is not its own", () => {
    const trace = answering("a", "b", "c");
    trace.addChances([said("a", 0.5), said("X", 0.5), said("c", 0.5)]);
    trace.addChances([said("c", 0.5)]);
    expect([1, 2, 3].map((p) => trace.chanceAt(p) !== null)).toEqual([true, false, false]);
  });

  it("are kept with the chat", () => {
    const trace = answering("a");
    trace.addChances([said("a", 0.5)]);
    expect(Trace.restore(structuredClone(trace.snapshot())).chanceAt(1)).toEqual(trace.chanceAt(1));
  });
});

describe("the entropy", () => {
  const bound = (...p: number[]) =>
    entropyAtLeast({ logprob: 0, likeliest: p.map((x) => ({ token: "", logprob: Math.log(x) })) });

  it("is exact when all tokens are known, and else a bound below that of any distribution that fits", () => {
    expect(bound(0.5, 0.5)).toBeCloseTo(Math.log(2));
    expect(bound(1)).toBeCloseTo(0);
    const whole = -(0.5 * Math.log(0.5) + 5 * 0.1 * Math.log(0.1));
    expect(bound(0.5, 0.1)).toBeLessThanOrEqual(whole + 1e-12);
    expect(bound(0.5, 0.1)).toBeCloseTo(whole);
    expect(bound(0.5, 0.1, 0.1)).toBeCloseTo(whole);
  });

  it("is not known where no alternatives are", () => {
    expect(bound()).toBeNull();
  });
});
