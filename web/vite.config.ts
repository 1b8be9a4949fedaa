import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { defineConfig, type Plugin } from "vite";

// The smallest build of onnxruntime-web that has SIMD; compressed here, since not every server compresses.
const build = "node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded";
const runtime: Record<string, Buffer> = {
  "runtime.bin": gzipSync(readFileSync(`${build}.wasm`), { level: 9 }),
  "runtime.js": readFileSync(`${build}.mjs`), // its glue; not every server knows .mjs
};

const shipRuntime: Plugin = {
  name: "ship-runtime",
  generateBundle() {
    for (const [fileName, source] of Object.entries(runtime)) this.emitFile({ type: "asset", fileName, source });
  },
  configureServer(server) {
    for (const [name, content] of Object.entries(runtime))
      server.middlewares.use(`/${name}`, (_, response) => {
        response.setHeader("Content-Type", name.endsWith(".js") ? "text/javascript" : "application/octet-stream");
        response.end(content);
      });
  },
};

export default defineConfig({
  base: "./", // relative addresses: the build works in any folder of any server
  publicDir: process.env.LFM_PAGE_MODEL ?? "exported/bundled",
  define: { __RUNTIME_BYTES__: runtime["runtime.bin"].length },
  plugins: [shipRuntime],
  worker: { format: "es" },
  build: { target: "es2022" },
});
