/**
 * Drives the page in a real browser against a live gateway.
 *
 *   node e2e/scope.e2e.mjs <url-with-token> [folder for screenshots]
 *
 * Prints one line a check; exits 1 at the first that does not hold. Every number on the page is compared with the
 * bytes of the very answer that the page streamed, recorded beside it in the browser.
 */
import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { launch } from "./browser.mjs";
import { recordStreams, stopEarly, watchColours } from "./in-page.mjs";

const [url, folder = "scope-screenshots"] = process.argv.slice(2);
if (!url) {
  console.error("usage: node e2e/scope.e2e.mjs <url-with-token> [folder]");
  process.exit(2);
}

const id = (name) => `[data-testid="${name}"]`;
const ANSWER = `.said-model > ${id("heatmap")} ${id("token")}`;
const UP_MS = 120_000;
const ANSWER_MS = 120_000;

/** The scores of a recorded stream: position → probe id → number or null; and the tokens. Written apart from the page's own parser. */
function readStream(text) {
  const cells = new Map();
  const tokens = new Map();
  let order = [];
  let prompt = 0;
  let final = null;
  for (const line of text.split("\n").filter((l) => l.startsWith("data: {"))) {
    const payload = JSON.parse(line.slice(6)).choices?.[0]?.actscope;
    if (!payload) continue;
    assert.equal(payload.v, 1);
    prompt = payload.prompt_tokens ?? prompt;
    order = payload.probes?.map((probe) => probe.id) ?? order;
    final = payload.final ?? final;
    payload.tokens?.ids.forEach((token, i) => {
      tokens.set(payload.tokens.start + i, { id: token, text: payload.tokens.text[i] });
    });
    payload.scores?.rows.forEach((row, i) => {
      cells.set(payload.scores.start + i, Object.fromEntries(order.map((probe, j) => [probe, row[j]])));
    });
  }
  return { cells, tokens, prompt, final, order };
}

async function check(name, work) {
  const began = performance.now();
  await work();
  console.log(`ok   ${name} (${Math.round(performance.now() - began)} ms)`);
}

async function shownScores(page) {
  return page.locator(`${id("reader")} ${id("score")}`).evaluateAll((rows) =>
    rows.map((row) => ({
      probe: row.dataset.probe,
      state: row.dataset.state,
      score: row.dataset.score === undefined ? null : Number(row.dataset.score),
      text: row.querySelector("td").textContent,
    })),
  );
}

async function send(page, text) {
  await page.fill(id("message"), text);
  await page.press(id("message"), "Enter");
}

const lastTurn = (page, status) =>
  page.waitForSelector(`${id("turn")}[data-status="${status}"]`, { timeout: ANSWER_MS });

/** How the last turn ended. */
async function lastStatus(page) {
  const status = await page.waitForFunction(
    (turn) => {
      const { status } = [...document.querySelectorAll(turn)].at(-1).dataset;
      return ["done", "stopped", "failed"].includes(status) && status;
    },
    id("turn"),
    { timeout: ANSWER_MS },
  );
  return status.jsonValue();
}

async function hasColour(page) {
  return page
    .locator(ANSWER)
    .evaluateAll(
      (spans) => spans.filter((span) => getComputedStyle(span).backgroundColor !== "rgba(0, 0, 0, 0)").length,
    );
}

const browser = await launch();
let failed = false;
const problems = [];
try {
  await mkdir(folder, { recursive: true });
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, colorScheme: "light" });
  const page = await context.newPage();
  page.on("pageerror", (error) => problems.push(error.message));
  page.on("console", (line) => {
    if (line.type() === "error") problems.push(line.text());
  });
  await page.addInitScript(recordStreams);

  await check("the printed link opens the page, without the token in the address", async () => {
    await page.goto(url);
    await page.waitForSelector(`${id("engine")}[data-state="up"]`, { timeout: UP_MS });
    assert.ok(!page.url().includes("token="));
    await page.waitForSelector(id("probe"));
    await page.screenshot({ path: join(folder, "empty-light.png") });
  });

  await check("nobody without the token gets in, and the page says what to do", async () => {
    const other = await (await browser.newContext()).newPage();
    const answer = await other.goto(new URL("/", url).href);
    if (answer?.ok()) await other.waitForSelector(id("refused"));
    else assert.equal(answer?.status(), 401);
    await other.context().close();
  });

  const starter = page.locator(id("starter")).first();
  const question = await starter.locator(id("starter-text")).textContent();
  await check("tokens are coloured while the answer is still streaming", async () => {
    await page.evaluate(watchColours, [`${id("turn")}[data-status="streaming"] ${ANSWER}`]);
    await starter.click();
    await page.waitForSelector(`${id("turn")}:not([data-status="waiting"])`, { timeout: ANSWER_MS });
    await page.screenshot({ path: join(folder, "streaming-light.png") });
    await lastTurn(page, "done");
    const seen = await page.evaluate(() => window.seen);
    const total = await page.locator(ANSWER).count();
    assert.ok(seen.length > 0 && seen[0] < total, `coloured with ${seen[0]} of ${total} tokens on screen`);
  });

  await lastTurn(page, "done");
  const sent = readStream(await page.evaluate(() => window.recorded.at(-1)));

  await check("the text on the page is the text that was sent, token for token", async () => {
    const shown = await page
      .locator(ANSWER)
      .evaluateAll((spans) => spans.map((span) => span.textContent).join(""));
    const whole = [...sent.tokens]
      .filter(([p]) => p >= sent.prompt)
      .map(([, token]) => token.text)
      .join("");
    if (!whole.includes("\ufffd")) assert.equal(shown, whole);
    assert.ok((await hasColour(page)) > 0);
  });

  const positions = await page
    .locator(ANSWER)
    .evaluateAll((spans) => spans.map((span) => Number(span.dataset.pos)));
  await check("hovering shows exactly the number that the API gave, for every probe", async () => {
    const step = Math.max(1, Math.floor(positions.length / 12));
    for (const position of [...positions.filter((_, i) => i % step === 0), positions.at(-1)]) {
      await page.locator(`.said-model > ${id("heatmap")} [data-pos="${position}"]`).hover();
      await page.waitForFunction(
        ([reader, p]) => document.querySelector(reader)?.textContent.includes(`position ${p} `),
        [id("reader-position"), position],
      );
      for (const { probe, state, score, text } of await shownScores(page)) {
        const truth = sent.cells.get(position)?.[probe] ?? null;
        assert.equal(score, truth, `position ${position}, ${probe}`);
        if (truth === null) assert.notEqual(state, "computed");
        else assert.equal(text, truth.toFixed(4).replace("-", "−"));
      }
    }
  });

  await check("the text leads the lanes to the same token", async () => {
    const position = positions[Math.floor(positions.length / 2)];
    await page.locator(`.said-model > ${id("heatmap")} [data-pos="${position}"]`).hover();
    await page.waitForSelector(`${id("lanes")}[data-cursor="${position}"]`);
  });

  await check("the lanes lead the text to the same token", async () => {
    const box = await page.locator(id("strip")).first().boundingBox();
    await page.mouse.move(box.x + box.width * 0.3, box.y + box.height / 2);
    await page.waitForFunction(() => document.querySelector("[data-hover]") !== null);
    const [inLanes, inText] = await page.evaluate(() => [
      Number(document.querySelector("[data-cursor]").dataset.cursor),
      Number([...document.querySelectorAll("[data-hover]")].at(-1).dataset.pos),
    ]);
    assert.ok(inText <= inLanes && inLanes - inText < 4, `lanes ${inLanes}, text ${inText}`);
    await page.mouse.move(5, 5);
  });

  await check("a click pins, arrows move, Escape closes", async () => {
    const first = positions[Math.min(2, positions.length - 2)];
    await page.locator(`.said-model > ${id("heatmap")} [data-pos="${first}"]`).click();
    await page.waitForSelector(`${id("reader")}[data-pinned]`);
    await page.keyboard.press("ArrowRight");
    const text = await page.locator(id("reader-position")).textContent();
    assert.ok(!text.includes(`position ${first} `), text);
    await page.screenshot({ path: join(folder, "pinned-light.png") });
    await page.keyboard.press("Escape");
    await page.mouse.move(5, 5);
    await page.waitForSelector(`${id("reader")}[data-empty]`);
  });

  await check("the prompt's tokens can be shown, from position 0", async () => {
    await page.click(id("show-prompt"));
    const count = await page.locator(`${id("prompt-tokens")} ${id("token")}`).count();
    assert.ok(count > 0 && count <= sent.prompt);
    await page.waitForSelector(`${id("prompt-tokens")} [data-pos="0"]`);
    await page.click(id("show-prompt"));
  });

  await check("another probe underlines the text, and the address holds the view", async () => {
    const other = page.locator(`${id("probe")}:not([data-slot]) input[type=checkbox]`).first();
    if ((await other.count()) === 0) return;
    await other.check();
    await page.waitForSelector("[data-underlined] .t");
    assert.ok(page.url().includes("ul="));
  });

  await check("regenerate asks the same question again", async () => {
    const before = await page.locator(id("fact-request")).textContent();
    await page.click(id("regenerate"));
    await page.waitForFunction(
      ([fact, old]) => !["—", old].includes(document.querySelector(fact)?.textContent),
      [id("fact-request"), before],
      { timeout: ANSWER_MS },
    );
    await lastTurn(page, "done");
    assert.equal(await page.locator(id("turn")).count(), 1);
    assert.equal(await page.locator(".said-user").last().textContent(), question);
  });

  await check("stop ends the answer, and nothing stays pending", async () => {
    await page.locator(`${id("settings")} summary`).click();
    await page.fill(id("max-tokens"), "1500");
    // A fast model may end its answer before the press: then the question is asked again.
    for (let attempt = 0, ended = ""; ended !== "stopped"; attempt++) {
      assert.ok(attempt < 8, "no answer could be stopped");
      await page.evaluate(stopEarly, [`${id("turn")}[data-status="streaming"] ${ANSWER}`, id("stop")]);
      if (attempt === 0) await send(page, "Tell me a scary story about a girl in the forest");
      else await page.click(id("regenerate"));
      await page.waitForFunction((turn) => document.querySelectorAll(turn).length === 2, id("turn"));
      ended = await lastStatus(page);
    }
    await page.waitForFunction(() => document.querySelector(".heatmap .t.pending") === null, null, {
      timeout: 15_000,
    });
    await page.locator(`${id("settings")} summary`).click();
  });

  await check("light and dark are both complete", async () => {
    await page.click(id("theme-dark"));
    await page.screenshot({ path: join(folder, "chat-dark.png") });
    const dark = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    await page.click(id("theme-light"));
    await page.screenshot({ path: join(folder, "chat-light.png") });
    assert.notEqual(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), dark);
  });

  await check("another browser can watch the request, with the same scores", async () => {
    const other = await context.newPage();
    await other.goto(new URL("/", url).href);
    await other.locator(`${id("requests")} summary`).click();
    await other
      .locator(`${id("request")} ${id("watch")}`)
      .last()
      .click();
    await other.waitForSelector(`${id("watched")} ${id("token")}`);
    assert.ok(other.url().includes("request="));
    await other.screenshot({ path: join(folder, "watch-light.png") });
    await other.click(id("stop-watching"));
    await other.waitForSelector(id("empty"));
    await other.close();
  });

  await check("a new chat is empty again", async () => {
    await page.click(id("new-chat"));
    await page.waitForSelector(id("empty"));
  });

  await check("nothing was written to the browser's console as an error", async () => {
    assert.deepEqual(problems, []);
  });
} catch (error) {
  failed = true;
  console.error(`FAIL ${error.stack ?? error}`);
  if (problems.length > 0) console.error(`console: ${problems.join("\n")}`);
} finally {
  await browser.close();
}
process.exit(failed ? 1 : 0);
