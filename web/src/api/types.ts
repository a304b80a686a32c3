import type { components } from "./schema";

type Schemas = components["schemas"];

export type Probe = Schemas["Probe"];
export type Info = Schemas["Info"];
export type RequestSummary = Schemas["RequestSummary"];
