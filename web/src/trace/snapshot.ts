import type { FinalBlock, SaeHeader } from "../wire/types";
import type { Chance } from "./chances";

/** All data of a trace by value, as a structured clone can hold it: arrays have one entry a position. */
export interface TraceSnapshot {
  readonly request: string;
  readonly promptTokens: number | null;
  readonly final: FinalBlock | null;
  /** Absent in what an earlier version of the page has kept. */
  readonly sae?: SaeHeader | null;
  readonly ids: Int32Array;
  readonly texts: readonly string[];
  readonly scored: Uint8Array;
  readonly units: UnitsSnapshot;
  readonly columns: readonly ColumnSnapshot[];
  readonly features: readonly ({ id: number; value: number | null }[] | undefined)[];
  /** Absent in what an earlier version of the page has kept. */
  readonly chances?: readonly (Chance | undefined)[];
}

export interface UnitsSnapshot {
  readonly starts: readonly number[];
  readonly ends: readonly number[];
  readonly texts: readonly string[];
  /** Bytes of a character that further tokens may complete. */
  readonly open: Uint8Array | null;
}

export interface ColumnSnapshot {
  readonly id: string;
  readonly site: string;
  readonly since: number;
  readonly scores: Float64Array;
  /** A `CellState` each. */
  readonly states: Uint8Array;
}
