import type { components } from "./schema";

type Schemas = components["schemas"];

export type Info = Schemas["Info"];
export type Replica = Schemas["ReplicaInfo"];
export type RequestSummary = Schemas["RequestSummary"];

/** A probe as the page shows it. Fields that the gateway omits are filled in once, here. */
export interface Probe {
  id: string;
  /** Generation in which it was loaded. The same id with another generation is another probe. */
  since: number;
  label: string;
  description: string;
  site: string;
  /** The scale of the display: stated by the probe, or learnt by the gateway. Null while too few scores were seen. */
  range: readonly [low: number, high: number] | null;
  /** Whether the range is learnt from scores. The first token, an attention sink, is then not on the scale. */
  learnt: boolean;
  signed: boolean;
  threshold: number | null;
  /** Share of held-out text without what the probe looks for whose scores are at or over the threshold. */
  fpr: number | null;
  auroc: number | null;
  /** The same of a probe that was trained on shuffled labels. */
  controlAuroc: number | null;
}

/** How far the gateway has learnt the range of a probe that states none. */
export type Learnt = Schemas["LearntRange"];

/** Fields that the gateway may omit. (Its schema allows more fields, which hides these from the generated type.) */
export interface SentProbe {
  id: string;
  since?: number;
  site: string;
  label?: string | null;
  description?: string | null;
  range?: readonly number[] | null;
  range_learnt?: Learnt | null;
  signed?: boolean | null;
  threshold?: number | null;
  fpr?: number | null;
  auroc?: number | null;
  control_auroc?: number | null;
}

/** Fills in defaults. A probe without a scale gets 0 to 1 if the gateway does not learn one. */
export function asProbe(sent: SentProbe): Probe {
  const [low = 0, high = 1] = sent.range ?? [];
  const learnt = Boolean(sent.range_learnt);
  return {
    id: sent.id,
    since: sent.since ?? 0,
    label: sent.label || sent.id,
    description: sent.description ?? "",
    site: sent.site,
    range: learnt && !sent.range ? null : [low, high],
    learnt,
    signed: sent.signed ?? low < 0,
    threshold: sent.threshold ?? null,
    fpr: sent.fpr ?? null,
    auroc: sent.auroc ?? null,
    controlAuroc: sent.control_auroc ?? null,
  };
}
