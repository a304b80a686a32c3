import type { Probe } from "../api/types";
import { knownProbe } from "../state/probes";
import type { Trace } from "../trace/trace";
import type { FeatureIndex } from "./features";
import { ProbeSeries, type Series } from "./series";

/** The vertical scale of a lane; `range` is null while none is known. */
export interface LaneScale {
  readonly range: readonly [low: number, high: number] | null;
  readonly threshold: number | null;
  readonly learnt: boolean;
  readonly signed: boolean;
}

/** One strip: a probe of the engine or of the request, or an SAE feature. */
export interface Lane {
  readonly key: string;
  readonly kind: "probe" | "feature";
  /** The probe's id, or the feature's number. */
  readonly id: string;
  readonly label: string;
  readonly scale: LaneScale;
  /** Null if the request has no scores of it. */
  readonly series: Series | null;
  readonly probe: Probe | null;
  /** When its probe left the engine, if it has. */
  readonly left: Date | null;
}

const UNKNOWN: LaneScale = { range: null, threshold: null, learnt: false, signed: false };

export type Departed = ReadonlyMap<string, { readonly probe: Probe; readonly at: Date }>;

/** Returns a lane for each probe of the engine, each that has left it, and each other one that scored the request. */
export function probeLanes(trace: Trace | null, known: readonly Probe[], departed: Departed): Lane[] {
  const columns = new Map((trace?.columns ?? []).map((column) => [column.id, column]));
  const now = new Map(known.map((probe) => [probe.id, probe]));
  const ids = new Set([...now.keys(), ...departed.keys(), ...columns.keys()]);
  return [...ids].map((id) => {
    const column = columns.get(id);
    const current = now.get(id);
    const probe = column && current?.since !== column.since ? knownProbe(id, known, column.since) : current;
    const left = departed.get(id);
    const shown = probe ?? left?.probe ?? null;
    const scale = shown ?? UNKNOWN;
    return {
      key: `probe ${id}`,
      kind: "probe",
      id,
      label: shown?.label ?? id,
      scale,
      series: column ? new ProbeSeries(column, scale.learnt ? 1 : 0) : null,
      probe: shown,
      left: left?.at ?? null,
    };
  });
}

/** Returns a lane for each feature, on a scale from 0 to its highest activation. */
export function featureLanes(index: FeatureIndex | null): Lane[] {
  return [...(index?.byId ?? [])].map(([id, series]) => ({
    key: `feature ${id}`,
    kind: "feature",
    id: String(id),
    label: `feature #${id}`,
    scale: {
      get range(): readonly [number, number] {
        return [0, series.max || 1];
      },
      threshold: null,
      learnt: false,
      signed: false,
    },
    series,
    probe: null,
    left: null,
  }));
}

/** Returns the lanes whose name or site contains the words that are sought. */
export function matching(lanes: readonly Lane[], sought: string): readonly Lane[] {
  const words = sought.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return lanes;
  return lanes.filter(({ label, id, probe }) => {
    const text = `${label} ${id} ${probe?.site ?? ""}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
}
