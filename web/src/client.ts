// Calls to the worker, as promises.

import type { Api } from "./worker";

export class Client {
  private worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
  private waiting = new Map<number, { resolve: (value: never) => void; reject: (error: Error) => void }>();
  private last = 0;

  constructor(progress: (loaded: number, total: number) => void) {
    this.worker.onmessage = ({ data }) => {
      if (data.progress) return progress(data.progress[0], data.progress[1]);
      const { resolve, reject } = this.waiting.get(data.id)!;
      this.waiting.delete(data.id);
      if ("error" in data) reject(new Error(data.error));
      else resolve(data.value as never);
    };
    this.worker.onerror = (event) => {
      for (const { reject } of this.waiting.values()) reject(new Error(event.message || "worker.js could not be loaded."));
      this.waiting.clear();
    };
  }

  call<M extends keyof Api>(method: M, ...args: Parameters<Api[M]>): ReturnType<Api[M]> {
    const id = ++this.last;
    this.worker.postMessage({ id, method, args });
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject })) as ReturnType<Api[M]>;
  }
}
