import type { components } from "./schema";

type Schemas = components["schemas"];

export type Info = Schemas["Info"];
export type RequestSummary = Schemas["RequestSummary"];

/** A probe as the page shows it. Fields that the gateway omits are filled in once, here. */
export interface Probe {
  id: string;
  label: string;
  description: string;
  site: string;
  /** The fixed scale of the display. */
  range: readonly [low: number, high: number];
  signed: boolean;
  threshold: number | null;
  auroc: number | null;
}

/** Fields that the gateway may omit. (Its schema allows more fields, which hides these from the generated type.) */
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

/** Fills in defaults. A probe without a scale gets 0 to 1, never a running maximum. */
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
