import react from "@vitejs/plugin-react";
import { defineConfig } from "vitest/config";

/** Where `npm run dev` sends API calls: a gateway, or the development mock (`npm run mock`). */
const upstream = process.env["ACTSCOPE_GATEWAY"] ?? "http://127.0.0.1:6969";

export default defineConfig({
  plugins: [react()],
  // Relative addresses: a proxy may serve the page under any path.
  base: "./",
  build: {
    // The gateway serves its page from its own package.
    outDir: "../src/actscope/gateway/static",
    emptyOutDir: true,
    target: "es2022",
    // The gateway's CSP is 'self': no data: URLs.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: { proxy: { "/v1": upstream, "/health": upstream } },
  test: { environment: "jsdom", include: ["tests/**/*.test.{ts,tsx}"] },
});
