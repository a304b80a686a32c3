import type { TokenLogprob } from "../wire/types";

/** How likely the model held a token, and the likeliest tokens in its place, likeliest first. Natural logarithms. */
export interface Chance {
  readonly logprob: number;
  readonly likeliest: readonly { readonly token: string; readonly logprob: number }[];
}

/** A token as its bytes, to compare it with what an engine says of it. */
export type BytesAt = (position: number) => Uint8Array;

const ENCODER = new TextEncoder();

/**
 * Log-probabilities of an answer's tokens by position. Engines send them in order but without positions, so each is compared with
 * the token at its place. From the first that differs on, none is kept: an unknown probability is better than one of another token.
 */
export class Chances {
  private rows: (Chance | undefined)[] = [];
  private waiting: TokenLogprob[] = [];
  private next = -1;
  private inDoubt = false;

  at(position: number): Chance | null {
    return this.rows[position] ?? null;
  }

  snapshot(): (Chance | undefined)[] {
    return [...this.rows];
  }

  restore(rows: readonly (Chance | undefined)[]): void {
    this.rows = [...rows];
  }

  push(entries: readonly TokenLogprob[]): void {
    if (!this.inDoubt) this.waiting.push(...entries);
  }

  /** Places what has come on the tokens of `[start, end)`. Returns the positions that got theirs, `[from, to)`. */
  place(start: number, end: number, bytesAt: BytesAt): [from: number, to: number] {
    const from = (this.next = Math.max(this.next, start));
    while (this.next < end && this.waiting.length > 0) {
      const entry = this.waiting.shift();
      if (!entry || !isOf(entry, bytesAt(this.next))) {
        this.inDoubt = true;
        this.waiting = [];
        break;
      }
      this.rows[this.next++] = {
        logprob: entry.logprob,
        likeliest: (entry.top_logprobs ?? []).map(({ token, logprob }) => ({ token, logprob })),
      };
    }
    return [from, this.next];
  }
}

function isOf({ token, bytes }: TokenLogprob, own: Uint8Array): boolean {
  const said = bytes ?? ENCODER.encode(token);
  return said.length === own.length && own.every((byte, i) => byte === said[i]);
}

/**
 * Returns a lower bound of the entropy, in nats, of a distribution of which only the likeliest tokens are known: what is left
 * lies on tokens that are no likelier than the last of them. Null if nothing is known.
 */
export function entropyAtLeast({ likeliest }: Chance): number | null {
  const last = likeliest.at(-1);
  if (!last) return null;
  let left = 1;
  let sum = 0;
  for (const { logprob } of likeliest) {
    const p = Math.exp(logprob);
    left -= p;
    if (p > 0) sum -= p * logprob;
  }
  return sum + Math.max(0, left) * Math.max(0, -last.logprob);
}
