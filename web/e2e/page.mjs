/** What the browser tests share: selectors, checks by name, and a page that is open and up. */
import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { launch } from "./browser.mjs";

export const id = (name) => `[data-testid="${name}"]`;
export const ANSWER = `.said-model > ${id("heatmap")} ${id("token")}`;
export const WAIT = { timeout: 120_000 };

/**
 * Runs checks against the gateway of the command line: `node e2e/X.e2e.mjs <url-with-token> [folder for screenshots]`.
 * Every check is run on a page of its own, in a fresh profile. Prints one line a check; the process exits 1 if one does not hold.
 */
export async function runChecks(script, checks) {
  const [url, folder = "scope-screenshots", only = ""] = process.argv.slice(2);
  if (!url) {
    console.error(`usage: node e2e/${script} <url-with-token> [folder] [part of a check's name]`);
    process.exit(2);
  }
  await mkdir(folder, { recursive: true });
  const browser = await launch();
  const failed = [];
  for (const [name, work] of Object.entries(checks).filter(([known]) => known.includes(only))) {
    const began = performance.now();
    const scene = new Scene(browser, url, folder);
    try {
      await work(scene);
      assert.deepEqual(scene.problems, [], "errors in the browser's console");
      console.log(`ok   ${name} (${Math.round(performance.now() - began)} ms)`);
    } catch (error) {
      failed.push(name);
      console.error(`FAIL ${name}\n${error.stack ?? error}`);
      await scene.page?.screenshot({ path: join(folder, "failed.png") }).catch(() => undefined);
    } finally {
      await scene.close();
    }
  }
  await browser.close();
  process.exit(failed.length > 0 ? 1 : 0);
}

/** One browser profile, its pages, and what a reader does with them. */
export class Scene {
  /** Errors of the console and of scripts. A check that provokes some empties it. */
  problems = [];
  page = null;
  context = null;

  constructor(browser, url, folder) {
    this.browser = browser;
    this.url = url;
    this.folder = folder;
  }

  /** Opens the page at a query, in the same profile as before; signs in first. */
  async open(query = "", options = {}) {
    if (this.context === null) {
      const size = { viewport: { width: 1440, height: 900 }, colorScheme: "light", ...options };
      this.context = await this.browser.newContext(size);
      await this.context.grantPermissions(["clipboard-read", "clipboard-write"]);
    }
    const page = await this.context.newPage();
    page.on("pageerror", (error) => this.problems.push(error.message));
    page.on("console", (line) => {
      if (line.type() === "error") this.problems.push(line.text());
    });
    this.page = page;
    await page.addInitScript(watchCards);
    await page.addInitScript(gateStreams);
    const address = new URL(this.url);
    const more = new URLSearchParams(query);
    for (const [key, value] of more) address.searchParams.set(key, value);
    await page.goto(address.href);
    await page.waitForSelector(`${id("engine")}[data-state="up"]`, WAIT);
    // In a low window the lanes are in a closed sheet, without rows.
    const lanes = `${id("lanes")} ul:not([aria-label="0 lanes"])`;
    await page.waitForSelector(lanes, { state: "attached", ...WAIT });
    return page;
  }

  async close() {
    await this.context?.close();
  }

  /** Asks, and returns when the answer has ended; with `until`, when that many of its tokens are on the screen. */
  async ask(text, { maxTokens = 60, until = null } = {}) {
    const { page } = this;
    const turns = await page.locator(id("turn")).count();
    await this.setMaxTokens(maxTokens);
    await page.fill(id("message"), text);
    await page.press(id("message"), "Enter");
    await page.waitForFunction(
      ([turn, n]) => document.querySelectorAll(turn).length === n,
      [id("turn"), turns + 1],
      WAIT,
    );
    if (until === null) await this.ended();
    else await this.tokens(until);
  }

  async setMaxTokens(count) {
    await this.page.evaluate(() => (document.querySelector('[data-testid="settings"]').open = true));
    await this.page.fill(id("max-tokens"), String(count));
    await this.page.press(id("max-tokens"), "Tab");
    await this.page.evaluate(() => (document.querySelector('[data-testid="settings"]').open = false));
  }

  /** Waits until the last turn has ended. */
  async ended() {
    await this.page.waitForFunction(
      (turn) => {
        const last = [...document.querySelectorAll(turn)].at(-1);
        return ["done", "stopped", "failed"].includes(last?.dataset.status);
      },
      id("turn"),
      WAIT,
    );
  }

  /** Waits until the last turn's answer has that many tokens or has ended. */
  async tokens(count) {
    await this.page.waitForFunction(
      ([turn, token, n]) => {
        const last = [...document.querySelectorAll(turn)].at(-1);
        return last.querySelectorAll(token).length >= n || last.dataset.status === "done";
      },
      [id("turn"), `.said-model > ${id("heatmap")} ${id("token")}`, count],
      WAIT,
    );
  }

  /** The answer's span at a position of the n-th turn. */
  token(turn, position) {
    return this.page
      .locator(id("turn"))
      .nth(turn)
      .locator(`.said-model > ${id("heatmap")} [data-pos="${position}"]`);
  }

  /** Positions of the n-th turn's answer, as they are on the screen. */
  async positions(turn) {
    return this.page
      .locator(id("turn"))
      .nth(turn)
      .locator(`.said-model > ${id("heatmap")} ${id("token")}`)
      .evaluateAll((spans) => spans.map((span) => Number(span.dataset.pos)));
  }

  /** Lets that many more events of completion streams reach the page; Infinity: all. Before the first call none is held. */
  async allow(events) {
    await this.page.evaluate((n) => window.allowEvents(n), events);
  }

  /** Calls the gateway from the page, with its cookie. */
  async api(method, path, body) {
    const [status, answer] = await this.page.evaluate(
      async ([how, where, what]) => {
        const headers = { "Content-Type": "application/json" };
        const given = what === null ? {} : { headers, body: JSON.stringify(what) };
        const response = await fetch(where, { method: how, ...given });
        return [response.status, await response.json().catch(() => null)];
      },
      [method, path, body ?? null],
    );
    assert.ok(status < 400, `${method} ${path}: ${status} ${JSON.stringify(answer)}`);
    return answer;
  }

  async shot(name) {
    await this.page.screenshot({ path: join(this.folder, `${name}.png`) });
  }
}

/** Runs in the page: after `expectCard(position)`, keeps in `wrongCards` whatever else the reader, the pinned ring and the lanes' cursor show. */
function watchCards() {
  window.expected = null;
  window.wrongCards = [];
  const look = () => {
    if (window.expected === null) return;
    const card = document.querySelector('[data-testid="reader-position"]')?.textContent ?? "no card";
    const cursor = document.querySelector('[data-testid="lanes"]')?.dataset.cursor;
    const rings = [...document.querySelectorAll("[data-pin]")].map((span) => span.dataset.pos);
    const seen = [Number(/\d+/.exec(card)?.[0] ?? -1), Number(cursor ?? -1), ...rings.map(Number)];
    if (seen.some((position) => position !== window.expected)) window.wrongCards.push(seen.join(" "));
  };
  window.expectCard = (position) => {
    window.expected = position;
  };
  const frame = () => {
    look();
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

/** Runs in the page: completion streams pass event by event, as many as `allowEvents` lets through. A fast model is then as slow as a test needs. */
function gateStreams() {
  let allowed = Infinity;
  let wake = () => undefined;
  window.allowEvents = (count) => {
    allowed = Number.isFinite(allowed) && Number.isFinite(count) ? allowed + count : count;
    wake();
  };
  const real = window.fetch;
  const gate = () => {
    let rest = "";
    return new TransformStream({
      async transform(text, controller) {
        const events = (rest + text).split("\n\n");
        rest = events.pop();
        for (const event of events) {
          while (allowed < 1) await new Promise((resolve) => (wake = resolve));
          allowed--;
          controller.enqueue(`${event}\n\n`);
        }
      },
      flush: (controller) => controller.enqueue(rest),
    });
  };
  window.fetch = async (...args) => {
    const response = await real(...args);
    if (!/\/v1\/(chat\/)?completions$/.test(String(args[0])) || !response.body) return response;
    const body = response.body
      .pipeThrough(new TextDecoderStream())
      .pipeThrough(gate())
      .pipeThrough(new TextEncoderStream());
    return new Response(body, { status: response.status, headers: response.headers });
  };
}
