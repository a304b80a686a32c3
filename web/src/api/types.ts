import type { components } from "./schema";

type Schemas = components["schemas"];

export type Info = Schemas["Info"];
export type RequestSummary = Schemas["RequestSummary"];

/** A probe as the page shows it: what the gateway leaves out is filled in once, here. */
export interface Probe {
  id: string;
  label: string;
  description: string;
  site: string;
  /** The fixed scale of its display. */
  range: readonly [low: number, high: number];
  signed: boolean;
  threshold: number | null;
  auroc: number | null;
}

/** What the gateway may leave out. (Its schema allows more fields, which hides these from the generated type.) */
export interface SentProbe {
  id: string;
  site: string;
  label?: string | null;
  description?: string | null;
  range?: readonly number[] | null;
  signed?: boolean | null;
  threshold?: number | null;
  auroc?: number | null;
}

/** A probe that says nothing of its scale gets 0 to 1: never the running maximum. */
export function asProbe(sent: SentProbe): Probe {
  const [low = 0, high = 1] = sent.range ?? [];
  return {
    id: sent.id,
    label: sent.label || sent.id,
    description: sent.description ?? "",
    site: sent.site,
    range: [low, high],
    signed: sent.signed ?? low < 0,
    threshold: sent.threshold ?? null,
    auroc: sent.auroc ?? null,
  };
}
