/**
 * A development aid: speaks docs/wire.md with made-up tokens and scores, so that the page can be worked on
 * without a model. Nothing of the product depends on it. `node dev/mock.mjs [port]`, after `npm run build`.
 *
 *   MOCK_TPS=40        tokens a second         MOCK_WAIT=8   seconds of "waiting" first
 *   MOCK_PAGE=folder/  another build of the page, as of an earlier commit (with its last slash)
 *   GET /v1/actscope/requests/long-<n>/events  n tokens × 8 probes at once, then one every 20 ms
 */
import { randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const PORT = Number(process.argv[2] ?? 6969);
const TPS = Number(process.env.MOCK_TPS ?? 40);
const UP_AT = Date.now() + 1000 * Number(process.env.MOCK_WAIT ?? 0);
const TOKEN = randomBytes(8).toString("hex");
const STATIC =
  process.env.MOCK_PAGE ?? new URL("../../src/actscope/gateway/static/", import.meta.url).pathname;
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml" };
const CSP = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'";

const probe = (id, label, layer, extra) => ({
  id,
  label,
  description: `${label}: a made-up probe of the mock`,
  site: `layers.${layer}.resid_post`,
  layer,
  activation: "sigmoid",
  bias: 0,
  range: [0, 1],
  signed: false,
  token_mask: "special",
  ...extra,
});
const PROBES = [
  probe("danger", "danger", 3, { threshold: 0.6, fpr: 0.01, auroc: 0.97, control_auroc: 0.52 }),
  probe("joy", "joy", 3, { threshold: 0.7, auroc: 0.94 }),
  probe("valence", "valence", 4, { activation: "identity", range: [-4, 4], signed: true, auroc: 0.91 }),
  probe("animal", "animal", 2, { threshold: 0.5, auroc: 0.99 }),
  probe("past", "past tense", 3, { auroc: 0.95 }),
  probe("future", "future tense", 3, { auroc: 0.96 }),
  probe("number", "number", 1, { threshold: 0.5, auroc: 0.99 }),
  probe("sea", "sea", 4, { activation: "relu", range: [0, 8], threshold: 3, auroc: 0.9 }),
];
const WORDS = {
  danger: /dark|wolf|blood|scream|fear|knife|shadow|scary|cold/,
  joy: /happy|laugh|warm|sun|smile|friend/,
  animal: /fox|wolf|bird|dog|cat/,
  past: /ed$|was|ran|saw|went/,
  future: /will|tomorrow|shall/,
  number: /one|two|three|four|five|six|seven|eight|nine|ten|\d/,
  sea: /sea|sail|wave|ship|storm/,
};
const STORY =
  "Once there was a small fox in the snow. She ran past the dark trees, and a wolf saw her shadow.\n\nThe cold wind screamed; " +
  "fear went through the forest. “Do not go,” said the bird — but the fox laughed. Tomorrow the sun will come, and the snow will be " +
  "warm \t like a friend. 🦊 One, two, three… the sailor will go to sea, and the storm will follow the ship.";

const hash = (text, salt) => {
  let h = 2166136261 ^ salt;
  for (const char of text) h = Math.imul(h ^ char.codePointAt(0), 16777619);
  return ((h >>> 0) % 10007) / 10007;
};
/** Text as tokens; what is not Latin comes as single UTF-8 bytes. */
function tokenize(text) {
  return (text.match(/<\|\w+\|>|\s?\p{L}+|\s+|[^\s\p{L}]/gu) ?? []).flatMap((piece) =>
    [...piece].every((char) => char.codePointAt(0) < 0x2100)
      ? [{ text: piece, id: Math.floor(hash(piece, 1) * 4000) }]
      : [...Buffer.from(piece)].map((byte) => ({
          text: "\ufffd",
          id: byte + 3,
          bytes: Buffer.from([byte]).toString("base64"),
        })),
  );
}
function row(tokens, p) {
  const { text } = tokens[p];
  if (text.startsWith("<|")) return { row: PROBES.map(() => null), states: "m".repeat(PROBES.length) };
  const score = ({ id, range: [low, high], signed }, j) => {
    let near = 0;
    for (let back = 0; back < 6 && p - back >= 0; back++) {
      const word = tokens[p - back].text.toLowerCase();
      const hit =
        id === "valence"
          ? WORDS.joy.test(word)
            ? 1
            : WORDS.danger.test(word)
              ? -1
              : 0
          : Number(WORDS[id].test(word));
      if (Math.abs(hit) * 0.62 ** back > Math.abs(near)) near = hit * 0.62 ** back;
    }
    const noise = 0.12 * hash(text + p, j + 7);
    return Math.fround(
      signed
        ? high * (near * 0.9 + noise - 0.06)
        : low + (high - low) * Math.max(0, near * 0.85 + noise - 0.02),
    );
  };
  return { row: PROBES.map(score), states: "c".repeat(PROBES.length) };
}
function tokenBlock(tokens, start, end) {
  const slice = tokens.slice(start, end);
  const raw = Object.fromEntries(slice.flatMap((token, i) => (token.bytes ? [[i, token.bytes]] : [])));
  return {
    start,
    ids: slice.map(({ id }) => id),
    text: slice.map(({ text }) => text),
    ...(Object.keys(raw).length ? { bytes: raw } : {}),
  };
}
function scoreBlock(tokens, start, end, last) {
  const cells = [];
  for (let p = start; p < end; p++) {
    cells.push(
      p === last ? { row: PROBES.map(() => null), states: "n".repeat(PROBES.length) } : row(tokens, p),
    );
  }
  const plain = cells.every(({ states }) => /^c+$/.test(states));
  return {
    start,
    rows: cells.map((cell) => cell.row),
    ...(plain ? {} : { states: cells.map(({ states }) => states) }),
  };
}
const header = (request, prompt) => ({
  v: 1,
  request,
  prompt_tokens: prompt,
  probes: PROBES.map(({ id, site }) => ({ id, site, since: 1 })),
});

const requests = [];
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function chat(body, res) {
  const id = `chatcmpl-${randomBytes(12).toString("hex")}`;
  const said = body.messages.map(({ role, content }) => `<|${role}|>\n${content}<|end|>\n`).join("");
  const prompt = tokenize(`<|begin|>${said}<|assistant|>\n`);
  const answer = tokenize(`${STORY} `.repeat(Math.ceil((body.max_tokens ?? 100) / 90))).slice(
    0,
    (body.max_tokens ?? 100) - 1,
  );
  const tokens = [...prompt, ...answer, { text: "<|end|>", id: 2 }];
  const n = prompt.length;
  const entry = {
    request: id,
    state: "running",
    created: Date.now() / 1000,
    model: "mock",
    prompt_tokens: n,
    completion_tokens: 0,
    source: "gateway",
    tokens,
  };
  requests.unshift(entry);
  res.on("close", () => {
    if (entry.state !== "running") return;
    entry.state = "aborted";
    entry.tokens = tokens.slice(0, n + entry.completion_tokens);
  });
  res.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
  const send = (choice, more) =>
    res.write(
      `data: ${JSON.stringify({ id, object: "chat.completion.chunk", model: "mock", choices: [{ index: 0, finish_reason: null, ...choice }], ...more })}\n\n`,
    );
  await sleep(250);
  send({
    delta: { role: "assistant", content: "" },
    actscope: {
      ...header(id, n),
      tokens: tokenBlock(tokens, 0, n),
      scores: scoreBlock(tokens, 0, n - 1, -1),
    },
  });
  for (let p = n; p < tokens.length && entry.state === "running"; p++) {
    entry.completion_tokens = p - n + 1;
    const special = tokens[p].text.startsWith("<|");
    send({
      delta: { content: special || tokens[p].bytes ? "" : tokens[p].text },
      actscope: { v: 1, tokens: tokenBlock(tokens, p, p + 1), scores: scoreBlock(tokens, p - 1, p, -1) },
    });
    if (/error/.test(said) && p === n + 12) {
      res.end(
        `data: ${JSON.stringify({ error: { message: "The engine ran out of memory.", type: "server_error", code: "engine_failed" } })}\n\n`,
      );
      entry.state = "failed";
      return;
    }
    await sleep(1000 / TPS);
  }
  if (entry.state !== "running") return;
  const last = tokens.length - 1;
  send({
    delta: {},
    finish_reason: "stop",
    actscope: {
      v: 1,
      scores: scoreBlock(tokens, last, last + 1, last),
      final: { finish_reason: "stop", present: tokens.length, computed: last },
    },
  });
  entry.state = "done";
  const usage = { prompt_tokens: n, completion_tokens: tokens.length - n, total_tokens: tokens.length };
  res.end(`data: ${JSON.stringify({ id, choices: [], usage })}\n\ndata: [DONE]\n\n`);
}

async function events(id, after, req, res) {
  const long = /^long-(\d+)$/.exec(id);
  const entry = requests.find(({ request }) => request === id);
  if (!long && !entry) return fail(res, 404, `There is no request ${id}.`);
  const tokens = long
    ? tokenize(`${STORY} `.repeat(Math.ceil(Number(long[1]) / 80) + 40)).slice(0, Number(long[1]) + 1500)
    : entry.tokens;
  const prompt = long ? 0 : entry.prompt_tokens;
  const burst = long ? Number(long[1]) : prompt;
  res.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
  let gone = false;
  req.on("close", () => {
    gone = true;
  });
  const send = (event, serial, data) => {
    if (serial > after) res.write(`event: ${event}\nid: ${serial}\ndata: ${JSON.stringify(data)}\n\n`);
  };
  for (let p = 0; p < burst; p += 500) {
    const end = Math.min(burst, p + 500);
    send("token", 2 * p + 1, {
      ...(p === 0 ? header(id, prompt) : { v: 1 }),
      tokens: tokenBlock(tokens, p, end),
      t: 0,
    });
    send("probe_update", 2 * p + 2, { v: 1, scores: scoreBlock(tokens, p === 0 ? 0 : p - 1, end - 1, -1) });
  }
  for (let p = burst; p < tokens.length && !gone; p++) {
    send("token", 2 * p + 1, {
      ...(p === 0 ? header(id, prompt) : { v: 1 }),
      tokens: tokenBlock(tokens, p, p + 1),
      t: p / TPS,
    });
    if (p > 0) send("probe_update", 2 * p + 2, { v: 1, scores: scoreBlock(tokens, p - 1, p, -1) });
    await sleep(long ? 20 : 1000 / TPS);
  }
  const last = tokens.length - 1;
  send("probe_update", 2 * last + 4, { v: 1, scores: scoreBlock(tokens, last, last + 1, last) });
  send("probe_final", 2 * last + 5, { v: 1, present: tokens.length, computed: last, probes: {} });
  send("done", 2 * last + 6, { v: 1, finish_reason: "stop" });
  res.end();
}

function json(res, status, body) {
  res.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(body));
}
const fail = (res, status, message) =>
  json(res, status, { error: { message, type: "invalid_request_error", param: null, code: null } });

async function page(path, res) {
  const file = join(STATIC, normalize(path === "/" ? "/index.html" : path));
  const bytes = await readFile(file).catch(() => null);
  if (!bytes || !file.startsWith(STATIC)) return fail(res, 404, `There is no ${path}.`);
  res
    .writeHead(200, {
      "Content-Type": TYPES[extname(file)] ?? "application/octet-stream",
      "Content-Security-Policy": CSP,
    })
    .end(bytes);
}

async function api(req, res, { pathname: path, searchParams }) {
  const up = Date.now() >= UP_AT;
  const engine = {
    state: up ? "up" : "waiting",
    kind: "mock",
    model: "mock-8M",
    revision: "0",
    device: "cpu",
    dtype: "float32",
    n_layers: 6,
    d_model: 256,
    max_context: 2048,
  };
  if (path === "/v1/actscope/info") {
    const whole = { limits: {}, ring: null, replicas: [], replicas_expected: 0, scores: null };
    return json(res, 200, { version: "0.1.0", engine, ...whole, counters: [], troubles: [] });
  }
  if (path === "/v1/actscope/probes") return json(res, 200, { generation: 1, probes: PROBES });
  if (path === "/v1/actscope/requests")
    return json(res, 200, { requests: requests.map((one) => ({ ...one, tokens: undefined })) });
  const watched = /^\/v1\/actscope\/requests\/([^/]+)\/events$/.exec(path);
  if (watched)
    return events(
      watched[1],
      Number(req.headers["last-event-id"] ?? searchParams.get("after") ?? 0),
      req,
      res,
    );
  if (req.method === "DELETE") return json(res, 200, {});
  if (path === "/v1/chat/completions" && req.method === "POST") {
    let body = "";
    for await (const chunk of req) body += chunk;
    return chat(JSON.parse(body), res);
  }
  return fail(res, 404, `There is no ${path}.`);
}

createServer(async (req, res) => {
  const url = new URL(req.url ?? "/", "http://127.0.0.1");
  if (url.searchParams.get("token") === TOKEN) {
    return res
      .writeHead(303, { Location: "/", "Set-Cookie": `actscope=${TOKEN}; HttpOnly; SameSite=Strict; Path=/` })
      .end();
  }
  if (!url.pathname.startsWith("/v1/")) return page(url.pathname, res);
  if (!(req.headers.cookie ?? "").includes(TOKEN)) return fail(res, 401, "No or wrong token.");
  return api(req, res, url);
}).listen(PORT, "127.0.0.1", () => console.log(`http://127.0.0.1:${PORT}/?token=${TOKEN}`));
