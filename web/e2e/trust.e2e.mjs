/**
 * What the page shows is true, and what the reader has made is not lost: see `runChecks` of page.mjs for how to run it.
 *
 * A probe that did not read a request, that left or was replaced; characters of several tokens; long lines; reload, Back, New
 * chat, Regenerate; a gateway that refuses the browser; a message sent while the reader is elsewhere.
 */
import assert from "node:assert/strict";
import { ANSWER, id, runChecks, WAIT } from "./page.mjs";

const FOX = "Tell me about a fox in the snow";

/** Adds a direction of made-up numbers. */
async function addProbe(scene, name, more = {}) {
  const info = await scene.api("GET", "/v1/actscope/info");
  const vector = Array.from({ length: info.engine.d_model }, (_, i) => Math.sin(7 * i + 1));
  const probe = {
    vector,
    site: "layers.2.resid_post",
    activation: "identity",
    range: [-4, 4],
    ...more,
  };
  await scene.api("PUT", `/v1/actscope/probes/${name}`, probe);
}

/** Makes the page ask the engine at once, as it does each 15 s and after each answer. */
const recheck = (page) => page.evaluate(() => window.dispatchEvent(new Event("online")));

const texts = (page) =>
  page.locator(ANSWER).evaluateAll((spans) => spans.map((span) => span.textContent).join(""));

const answerOf = (scene, turn) =>
  scene.page
    .locator(id("turn"))
    .nth(turn)
    .locator(ANSWER)
    .evaluateAll((spans) => spans.map((span) => span.textContent).join(""));

/** Waits until this browser has written the chat: the address names it, and its last turn is stored with its answer. */
async function isKept(page, turns) {
  await page.waitForFunction(
    async (count) => {
      const open = indexedDB.open("actscope");
      const base = await new Promise((done) => (open.onsuccess = () => done(open.result)));
      if (!base.objectStoreNames.contains("turns")) return false;
      const all = base.transaction("turns").objectStore("turns").getAll();
      const rows = await new Promise((done) => (all.onsuccess = () => done(all.result)));
      base.close();
      return rows.filter(({ status }) => ["done", "stopped"].includes(status)).length >= count;
    },
    turns,
    WAIT,
  );
  assert.ok(new URL(page.url()).searchParams.get("chat"), "the address names no chat");
}

await runChecks("trust.e2e.mjs", {
  "tokens that the background probe never read are hatched, not plain as 0 is": async (scene) => {
    const page = await scene.open();
    await scene.ask(FOX);
    await addProbe(scene, "late");
    try {
      await recheck(page);
      await page.locator(id("background-late")).check(WAIT);
      const classes = await page.locator(ANSWER).evaluateAll((spans) => spans.map((span) => span.className));
      assert.deepEqual([...new Set(classes.map((name) => /\bnever\b/.test(name)))], [true]);
      assert.match(await page.locator(id("not-read")).textContent(), /not read by late/);
      await scene.shot("trust-not-read");
    } finally {
      await scene.api("DELETE", "/v1/actscope/probes/late");
    }
  },

  "scores of a probe that leaves keep their colours, and the page says that it left": async (scene) => {
    const page = await scene.open();
    await addProbe(scene, "leaving");
    await recheck(page);
    await page.locator(id("background-leaving")).check(WAIT);
    await scene.ask(FOX);
    const classesOf = () => page.locator(ANSWER).evaluateAll((spans) => spans.map((span) => span.className));
    const before = await classesOf();
    assert.ok(
      before.some((name) => /\bn\d+ below/.test(name)),
      "no score below zero to look at",
    );
    await scene.api("DELETE", "/v1/actscope/probes/leaving");
    await recheck(page);
    await page.waitForSelector(`${id("departed")}[data-probe="leaving"]`, WAIT);
    assert.deepEqual(await classesOf(), before);
    assert.match(await page.locator(id("departed")).textContent(), /left the engine at \d\d:\d\d/);
    assert.match(await page.locator(id("gone")).textContent(), /leaving left the engine/);
    assert.match(await page.locator(id("legend")).textContent(), /−4.*4/);
    await scene.shot("trust-left");
  },

  "an address with a probe that the engine does not have falls back to the first, and says so": async (
    scene,
  ) => {
    const page = await scene.open("bg=gone&heat=scale");
    await page.waitForSelector(`${id("probe")}[data-slot="0"]`);
    assert.match(await page.locator(id("gone")).textContent(), /does not have gone/);
    await scene.ask(FOX);
    const heat = await page
      .locator(ANSWER)
      .evaluateAll((spans) => spans.filter((s) => / s\d/.test(s.className)).length);
    assert.ok(heat > 0, "the answer has no colours");
  },

  "the reader of a character made of several tokens has the character, its positions and the score of its colour":
    async (scene) => {
      const page = await scene.open();
      await scene.ask("🦊 你好");
      await page.click(id("show-prompt"));
      const fox = page.locator(`${id("prompt-tokens")} ${id("token")}`, { hasText: "🦊" });
      await fox.click();
      const card = page.locator(id("reader"));
      await page.waitForSelector(`${id("reader")}[data-pinned]`);
      assert.match(await card.locator(".token-text").textContent(), /🦊/);
      const [, from, to] = /positions (\d+)–(\d+)/.exec(
        await card.locator(id("reader-position")).textContent(),
      );
      const request = await page.locator(id("fact-request")).textContent();
      const whole = await scene.api("GET", `/v1/actscope/requests/${encodeURIComponent(request)}`);
      const column = whole.probes.findIndex((probe) => probe.id === "anger");
      const scores = whole.scores.rows
        .slice(Number(from) - whole.scores.start, Number(to) + 1 - whole.scores.start)
        .map((row) => row[column]);
      const strongest = scores.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a));
      await page.click(id("more-scores"));
      const shown = await card.locator(`${id("score")}[data-probe="anger"]`).getAttribute("data-score");
      assert.equal(Number(shown), strongest);
      await scene.shot("trust-character");
    },

  "a text without a line break is not broken into lines that it does not have": async (scene) => {
    const page = await scene.open();
    await scene.ask("a small fox ran in the snow and ".repeat(60), { maxTokens: 8 });
    await page.click(id("show-prompt"));
    const blocks = await page
      .locator(`${id("prompt-tokens")} .block`)
      .evaluateAll((all) =>
        all.map((block) => ({ text: block.textContent, said: block.dataset.sameLine !== undefined })),
      );
    const broken = blocks.slice(0, -1).filter(({ text, said }) => !text.endsWith("\n") && !said);
    assert.deepEqual(
      broken.map(({ text }) => text.slice(-40)),
      [],
    );
  },

  "a reload keeps the conversation, its colours and the draft": async (scene) => {
    const page = await scene.open();
    await scene.ask(FOX);
    await scene.ask("What will the sailor do tomorrow?");
    await page.fill(id("message"), "not sent yet");
    const before = [await answerOf(scene, 0), await answerOf(scene, 1)];
    const classes = await page.locator(ANSWER).evaluateAll((spans) => spans.map((span) => span.className));
    await isKept(page, 2);
    await page.reload();
    await page.waitForFunction((turn) => document.querySelectorAll(turn).length === 2, id("turn"), WAIT);
    await page.waitForSelector(ANSWER, WAIT);
    assert.deepEqual([await answerOf(scene, 0), await answerOf(scene, 1)], before);
    await page.waitForSelector(`${id("engine")}[data-state="up"]`, WAIT);
    await page.waitForFunction(
      ([tokens, first]) => document.querySelector(tokens).className === first,
      [ANSWER, classes[0]],
      WAIT,
    );
    assert.deepEqual(
      await page.locator(ANSWER).evaluateAll((spans) => spans.map((span) => span.className)),
      classes,
    );
    assert.equal(await page.inputValue(id("message")), "not sent yet");
  },

  "New chat can be undone, and the browser's Back returns to the chat": async (scene) => {
    const page = await scene.open();
    await scene.ask(FOX);
    const before = await texts(page);
    await page.click(id("new-chat"));
    await page.waitForSelector(id("empty"));
    await page.click(id("undo-new-chat"));
    await page.waitForSelector(ANSWER);
    assert.equal(await texts(page), before);
    await page.goForward();
    await page.waitForSelector(id("empty"));
    await page.goBack();
    await page.waitForSelector(ANSWER);
    assert.equal(await texts(page), before);
    // The same in a page that starts anew.
    await isKept(page, 1);
    const other = await scene.open();
    await other.locator(id("earlier-chat")).first().click();
    await other.waitForSelector(ANSWER);
    assert.equal(await texts(other), before);
  },

  "Regenerate keeps the earlier answer, one step away": async (scene) => {
    const page = await scene.open();
    await scene.ask(FOX);
    const before = await texts(page);
    await page.click(id("regenerate"));
    await page.waitForFunction(
      (versions) => document.querySelector(versions)?.textContent.includes("2 / 2"),
      id("versions"),
    );
    await scene.ended();
    const after = await texts(page);
    await page.click(id("earlier-answer"));
    assert.equal(await texts(page), before);
    await page.click(id("later-answer"));
    assert.equal(await texts(page), after);
    await isKept(page, 2);
    await page.reload();
    await page.waitForSelector(ANSWER, WAIT);
    await page.click(id("earlier-answer"));
    assert.equal(await texts(page), before);
    await scene.shot("trust-versions");
  },

  "Back from a watched request returns to the chat": async (scene) => {
    const page = await scene.open();
    await scene.ask(FOX);
    const before = await texts(page);
    await page.locator(`${id("requests")} summary`).click();
    await page
      .locator(`${id("request")} ${id("watch")}`)
      .first()
      .click();
    await page.waitForSelector(`${id("watched")} ${id("token")}`, WAIT);
    await page.goBack();
    await page.waitForSelector(id("turn"));
    assert.equal(await texts(page), before);
    await page.goForward();
    await page.waitForSelector(`${id("watched")} ${id("token")}`, WAIT);
  },

  "a gateway that refuses the browser lies over the page, which goes on with its draft after the new link":
    async (scene) => {
      const page = await scene.open();
      await scene.ask(FOX);
      const before = await texts(page);
      await page.fill(id("message"), "not sent yet");
      const cookies = await scene.context.cookies();
      await scene.context.clearCookies();
      await recheck(page);
      await page.waitForSelector(id("refused"), WAIT);
      await page.click(id("try-again"));
      await page.locator(id("refused")).getByText("still refuses").waitFor(WAIT);
      await scene.shot("trust-refused");
      assert.equal(await texts(page), before);
      assert.equal(await page.inputValue(id("message")), "not sent yet");
      await scene.context.addCookies(cookies);
      await page.click(id("try-again"));
      await page.waitForSelector(id("refused"), { state: "hidden", ...WAIT });
      assert.equal(await texts(page), before);
      assert.equal(await page.inputValue(id("message")), "not sent yet");
      scene.problems = scene.problems.filter((text) => !text.includes("401"));
    },

  "a message that is sent while the reader is scrolled up is seen, and new text below is announced": async (
    scene,
  ) => {
    const page = await scene.open("", { viewport: { width: 1200, height: 500 } });
    for (const text of [FOX, "What will the sailor do tomorrow?", "Count to ten"])
      await scene.ask(text, { maxTokens: 120 });
    const scroll = page.locator(".scroll");
    await scroll.evaluate((box) => (box.scrollTop = 0));
    await page.waitForSelector(id("newest"));
    await scene.allow(6);
    await scene.ask("Tell me a scary story about a girl in the forest", { until: 2 });
    const seen = await page
      .locator(".said-user")
      .last()
      .evaluate((box) => {
        const { top, bottom } = box.getBoundingClientRect();
        const frame = document.querySelector(".scroll").getBoundingClientRect();
        return top >= frame.top && bottom <= frame.bottom;
      });
    assert.ok(seen, "the message is not in the window");
    await scroll.evaluate((box) => (box.scrollTop = 0));
    await page.waitForSelector(id("newest"));
    await scene.allow(8);
    await page
      .locator(id("newest"))
      .getByText(/\d+ new token/)
      .waitFor(WAIT);
    await scene.shot("trust-newest");
    await page.click(id("newest"));
    await page.waitForSelector(id("newest"), { state: "detached" });
    await scene.allow(Infinity);
    await scene.ended();
  },
});
