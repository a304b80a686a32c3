/** The shapes of docs/wire.md, as they travel. Version 1. */

export interface HeaderProbe {
  id: string;
  site?: string;
}

/** `text` and `ids` belong to positions `start`, `start + 1`, … */
export interface TokenBlock {
  start: number;
  ids: number[];
  text: string[];
  /** Raw bytes, base64, of tokens that are not valid UTF-8 alone; the key is the index in this block. */
  bytes?: Record<string, string>;
}

/** `rows[i][j]` is the score of position `start + i` for the j-th probe of the latest header. */
export interface ScoreBlock {
  start: number;
  rows: (number | null)[][];
  /** One string a row, one letter a probe; absent when every cell is a number. */
  states?: string[];
}

export interface FinalBlock {
  finish_reason?: string | null;
  present: number;
  computed: number;
}

export interface ScopePayload {
  v: number;
  request?: string;
  prompt_tokens?: number;
  probes?: HeaderProbe[];
  tokens?: TokenBlock;
  scores?: ScoreBlock;
  final?: FinalBlock;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
}

export interface CompletionChunk {
  id?: string;
  choices?: {
    index?: number;
    delta?: { role?: string; content?: string | null };
    finish_reason?: string | null;
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

export interface ChatRequest {
  model: string;
  messages: ChatMessage[];
  temperature: number;
  max_tokens: number;
  seed?: number;
}
