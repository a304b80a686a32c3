/** The wire format of docs/wire.md, version 1. */

export interface HeaderProbe {
  id: string;
  site?: string;
  /** Generation in which it was loaded. The same id with another generation is another probe. */
  since?: number;
}

/** `text` and `ids` are of the positions `start`, `start + 1`, … */
export interface TokenBlock {
  start: number;
  ids: number[];
  text: string[];
  /** Raw bytes, in base64, of tokens that are not valid UTF-8 alone, by index in this block. */
  bytes?: Record<string, string>;
}

/** `rows[i][j]` is the score of position `start + i` for the j-th probe of the latest header. */
export interface ScoreBlock {
  start: number;
  rows: (number | null)[][];
  /** One string per row with one letter per probe; absent if every cell is a number. */
  states?: string[];
}

/** The SAE whose features are sent; on the first payload. */
export interface SaeHeader {
  site: string;
  name: string;
  /** Number of features per row, the strongest ones. */
  k: number;
  n_features: number;
}

/** `ids[i][j]` and `values[i][j]` are the j-th strongest feature of position `start + i`; null if none were computed. */
export interface FeatureBlock {
  start: number;
  ids: (number[] | null)[];
  values: ((number | null)[] | null)[];
}

export interface FinalBlock {
  finish_reason?: string | null;
  present: number;
  computed: number;
  /** How many of the computed ones came with a cached prefix. */
  cached?: number | undefined;
}

export interface ScopePayload {
  v: number;
  request?: string;
  prompt_tokens?: number;
  probes?: HeaderProbe[];
  sae?: SaeHeader;
  tokens?: TokenBlock;
  scores?: ScoreBlock;
  features?: FeatureBlock;
  final?: FinalBlock;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
}

/** Log-probability of one token, and of the likeliest tokens in its place: OpenAI's `logprobs.content`. */
export interface TokenLogprob {
  token: string;
  logprob: number;
  bytes?: number[] | null;
  top_logprobs?: { token: string; logprob: number }[];
}

export interface CompletionChunk {
  id?: string;
  choices?: {
    index?: number;
    delta?: { role?: string; content?: string | null };
    /** Replaces `delta` if a text was continued. */
    text?: string;
    finish_reason?: string | null;
    logprobs?: { content?: TokenLogprob[] | null } | null;
    actscope?: ScopePayload;
  }[];
  usage?: Usage | null;
  error?: ErrorDetail | null;
}

export interface ErrorDetail {
  message: string;
  type?: string | null;
  param?: string | null;
  code?: string | number | null;
}

export interface DoneEvent {
  v: number;
  finish_reason?: string | null;
  usage?: Usage;
}

export interface ChatMessage {
  role: "system" | "user" | "assistant";
  content: string;
}

interface Sampling {
  model: string;
  temperature: number;
  max_tokens: number;
  seed?: number;
}

export interface ChatRequest extends Sampling {
  messages: ChatMessage[];
  logprobs?: boolean;
  top_logprobs?: number;
}

/** Request to a model without a chat template, which continues the text. */
export interface TextRequest extends Sampling {
  prompt: string;
}
