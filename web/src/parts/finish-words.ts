/** Why an answer ended, in words, by its finish reason. */
export const FINISH_WORDS: Record<string, string> = {
  stop: "finished",
  done: "finished",
  length: "reached max tokens",
  stopped: "stopped by you",
  left: "stopped when the page was left",
  abort: "cancelled",
  error: "the engine failed",
  lost: "no longer at the gateway",
};
