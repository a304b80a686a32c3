import { describe, expect, it } from "vitest";
import { addressOf, prefixOf } from "../src/lib/address";

describe("addresses under a proxy's path", () => {
  it("keeps the path under which the page is served", () => {
    expect(prefixOf("https://box/x/?view=1")).toBe("/x");
    expect(prefixOf("https://box/a/b/index.html")).toBe("/a/b");
    expect(prefixOf("http://127.0.0.1:6969/")).toBe("");
  });

  it("is the plain path at the root", () => {
    expect(addressOf("/v1/models")).toBe("/v1/models");
  });
});
