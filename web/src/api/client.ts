import createClient from "openapi-fetch";
import { addressOf } from "../lib/address";
import { Cell } from "../lib/cell";
import { detailOf, fromDetail, type ScopeError } from "../wire/errors";
import type { paths } from "./schema";

export const api = createClient<paths>({ baseUrl: addressOf(""), credentials: "same-origin" });

/** True after the gateway has refused this browser because its cookie is missing or outdated. */
export const refused = new Cell(false);

api.use({
  onResponse({ response }) {
    noteStatus(response.status);
  },
});

export function noteStatus(status: number | null): void {
  if (status === 401) refused.set(true);
  else if (status !== null && status < 400) refused.set(false);
}

/** Returns the error of a failed call of the generated client. */
export function problemOf(body: unknown, response: Response): ScopeError {
  return fromDetail(
    detailOf(body) ?? { message: `The gateway answered ${response.status}.` },
    response.status,
  );
}
