/** State of a cell; only a computed one has a number. `lost` exists only on the page: the stream ended before the row came. */
export const CellState = { pending: 0, computed: 1, never: 2, masked: 3, notFinite: 4, lost: 5 } as const;
export type CellState = (typeof CellState)[keyof typeof CellState];

const LETTERS: Record<string, CellState> = {
  c: CellState.computed,
  n: CellState.never,
  m: CellState.masked,
  x: CellState.notFinite,
};

export const STATE_WORDS: Record<CellState, string> = {
  [CellState.pending]: "pending",
  [CellState.computed]: "computed",
  [CellState.never]: "never computed",
  [CellState.masked]: "masked",
  [CellState.notFinite]: "not finite",
  [CellState.lost]: "not received",
};

/**
 * The scores of one probe over all positions of one request.
 *
 * Scores are doubles, as JSON numbers are: a float32 copy would not be exactly the received number.
 */
export class Column {
  scores: Float64Array;
  states: Uint8Array;

  constructor(
    readonly id: string,
    readonly site: string,
    readonly since: number,
    capacity: number,
  ) {
    this.scores = new Float64Array(capacity);
    this.states = new Uint8Array(capacity);
  }

  grow(capacity: number): void {
    const { scores, states } = this;
    this.scores = new Float64Array(capacity);
    this.states = new Uint8Array(capacity);
    this.scores.set(scores);
    this.states.set(states);
  }

  set(position: number, score: number | null, letter: string | undefined): void {
    const state = score === null ? (LETTERS[letter ?? "n"] ?? CellState.never) : CellState.computed;
    this.states[position] = state;
    this.scores[position] = score ?? 0;
  }

  stateAt(position: number): CellState {
    return (this.states[position] ?? CellState.pending) as CellState;
  }

  /** Returns the score at a position, or null if there is no number. */
  scoreAt(position: number): number | null {
    return this.states[position] === CellState.computed ? (this.scores[position] ?? null) : null;
  }
}
