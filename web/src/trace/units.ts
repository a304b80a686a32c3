import type { UnitsSnapshot } from "./snapshot";

const STRICT = new TextDecoder("utf-8", { fatal: true });
const NOTHING = new Uint8Array();
const LENIENT = new TextDecoder("utf-8");

/** Returns the length in bytes of the UTF-8 sequence that starts with this byte; 0 if no sequence can. */
function sequenceLength(lead: number): number {
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead < 0xe0) return 2;
  if (lead >= 0xe0 && lead < 0xf0) return 3;
  if (lead >= 0xf0 && lead < 0xf5) return 4;
  return 0;
}

/** Returns whether the bytes end inside a UTF-8 sequence that more bytes may complete. */
export function endsInsideSequence(bytes: Uint8Array): boolean {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back] ?? 0;
    if ((byte & 0xc0) !== 0x80) return sequenceLength(byte) > back;
  }
  return false;
}

export function fromBase64(text: string): Uint8Array {
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}

function join(left: Uint8Array, right: Uint8Array): Uint8Array {
  const both = new Uint8Array(left.length + right.length);
  both.set(left);
  both.set(right, left.length);
  return both;
}

function decode(bytes: Uint8Array): string {
  try {
    return STRICT.decode(bytes);
  } catch {
    return LENIENT.decode(bytes);
  }
}

/**
 * Display units: one unit is one token, or several whose bytes are valid UTF-8 only together.
 * `starts[u]` is the unit's first position, `ends[u]` one past its last, `texts[u]` its text.
 */
export class Units {
  readonly starts: number[] = [];
  readonly ends: number[] = [];
  readonly texts: string[] = [];
  private open: Uint8Array | null = null;

  get length(): number {
    return this.starts.length;
  }

  snapshot(): UnitsSnapshot {
    return { starts: [...this.starts], ends: [...this.ends], texts: [...this.texts], open: this.open };
  }

  /** Takes over the units of a snapshot, in place of none. */
  restore({ starts, ends, texts, open }: UnitsSnapshot): void {
    this.open = open;
    for (const [u, start] of starts.entries()) {
      this.starts.push(start);
      this.ends.push(ends[u] ?? start + 1);
      this.texts.push(texts[u] ?? "");
    }
  }

  /** Adds the token at `position`. Returns the first position whose unit changed. */
  push(position: number, text: string, bytes: Uint8Array | null): number {
    const last = this.length - 1;
    const joins = bytes !== null && this.open !== null && this.ends[last] === position;
    if (!joins) {
      this.open = bytes !== null && endsInsideSequence(bytes) ? bytes : null;
      this.starts.push(position);
      this.ends.push(position + 1);
      this.texts.push(bytes === null ? text : decode(bytes));
      return position;
    }
    const all = join(this.open ?? NOTHING, bytes);
    this.ends[last] = position + 1;
    this.texts[last] = decode(all);
    this.open = endsInsideSequence(all) ? all : null;
    return this.starts[last] ?? position;
  }

  /** Returns the unit of a position: its text and positions `[from, to)`. A position without one is its own, without text. */
  at(position: number): { text: string; from: number; to: number } {
    const unit = this.indexAt(position);
    const from = this.starts[unit] ?? Number.POSITIVE_INFINITY;
    if (from > position) return { text: "", from: position, to: position + 1 };
    return { text: this.texts[unit] ?? "", from, to: this.ends[unit] ?? position + 1 };
  }

  /** Returns the index of the first unit that ends after `position`; `length` if there is none. */
  indexAt(position: number): number {
    let low = 0;
    let high = this.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.ends[middle] ?? 0) > position) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
