import type { ErrorDetail } from "./types";

/** An error with a hint what the reader can do about it. */
export class ScopeError extends Error {
  constructor(
    message: string,
    readonly hint: string,
    readonly status: number | null = null,
    /** Whether prompt and answer together are longer than the model's context. */
    readonly isTooLong = false,
    /** Length of the prompt, if the error says it. */
    readonly promptTokens: number | null = null,
  ) {
    super(message);
    this.name = "ScopeError";
  }
}

const HINTS: Record<number, string> = {
  400: "Change the request and send it again.",
  401: "Open the link that the terminal printed when the gateway started.",
  403: "This page's address is not on the gateway's allow-list. Open the link that the terminal printed.",
  404: "This gateway does not have it, or has it no longer. Start a new chat.",
  410: "Its events have left the gateway's memory.",
  413: "The message is too large. Shorten it.",
  429: "Too many requests are in flight. Wait for one to finish, then send again.",
  502: "The engine failed. Its log, in the terminal, has the reason. Then press Regenerate.",
  503: "The engine is not up yet. This page keeps checking; send again when it is.",
};

export function fromDetail(detail: ErrorDetail, status: number | null): ScopeError {
  if (detail.code === "context_length_exceeded") {
    const hint = "Prompt and answer together must fit the model's context.";
    return new ScopeError(detail.message, hint, status, true, promptTokensOf(detail.message));
  }
  return new ScopeError(detail.message, HINTS[status ?? 0] ?? "Press Regenerate to try again.", status);
}

/** The prompt's length in the words of our engine and of vLLM; null in other words. */
function promptTokensOf(message: string): number | null {
  const found = /the prompt has (\d+)|\((\d+) in the messages/.exec(message);
  return found ? Number(found[1] ?? found[2]) : null;
}

export async function fromResponse(response: Response): Promise<ScopeError> {
  const body: unknown = await response.json().catch(() => null);
  return fromDetail(
    detailOf(body) ?? { message: `The gateway answered ${response.status}.` },
    response.status,
  );
}

/** Returns the error in an OpenAI-style body, or null if there is none. */
export function detailOf(body: unknown): ErrorDetail | null {
  if (typeof body !== "object" || body === null || !("error" in body)) return null;
  const { error } = body;
  if (typeof error !== "object" || error === null || !("message" in error)) return null;
  return error as ErrorDetail;
}

export function networkLost(): ScopeError {
  return new ScopeError(
    "The connection to the gateway was lost.",
    "Check its terminal. If it is still running, this page reconnects automatically: then press Regenerate. If it was restarted, open the new link.",
  );
}

export function asScopeError(error: unknown): ScopeError {
  if (error instanceof ScopeError) return error;
  if (error instanceof TypeError) return networkLost();
  return new ScopeError(
    error instanceof Error ? error.message : String(error),
    "Press Regenerate to try again.",
  );
}
