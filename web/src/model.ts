// The exported graphs, run by onnxruntime-web on one thread. Imported by the worker alone.

import * as ort from "onnxruntime-web/wasm";
import type { Cloud, Description } from "./description";

declare const __RUNTIME_BYTES__: number;

type Progress = (loaded: number, total: number) => void;

export class Model {
  rows = 0; // that went through the transformer

  private constructor(
    readonly description: Description,
    readonly cloud: Cloud,
    private velocitySession: ort.InferenceSession,
    private decoderSession: ort.InferenceSession,
    private encoderSession: Promise<ort.InferenceSession>,
  ) {}

  /** Load everything; the encoder goes on loading after this returns. */
  static async load(base: string, progress: Progress): Promise<Model> {
    const description = (await (await fetched(base + "model.json")).json()) as Description;
    const sizes = Object.values(description.files).map((file) => file.bytes);
    const total = [__RUNTIME_BYTES__, ...sizes].reduce((a, b) => a + b);
    let loaded = 0;
    const read = (name: string) => unpacked(base + name, (bytes) => progress((loaded += bytes), total));
    const graph = async (name: string) => joined(await read(name));
    // `runtime` first: everything else waits for it.
    const runtime = read("runtime.bin");
    const [velocity, decoder] = [graph("velocity.bin"), graph("decoder.bin")];
    const encoder = graph("encoder.bin");
    encoder.catch(() => {});
    const cloud = (await (await fetched(base + "cloud.json")).json()) as Cloud;
    ort.env.wasm.wasmBinary = (await runtime).buffer as ArrayBuffer;
    ort.env.wasm.wasmPaths = { mjs: base + "runtime.js" };
    ort.env.wasm.numThreads = 1;
    ort.env.logLevel = "error";
    const velocitySession = await session(await velocity);
    const decoderSession = await session(await decoder);
    const model = new Model(description, cloud, velocitySession, decoderSession, encoder.then(session));
    model.encoderSession.catch(() => {});
    return model;
  }

  /** v(t, x, labels): t one time for all rows, or one each. */
  async velocity(t: number | number[], x: Float32Array, labels: number[]): Promise<Float32Array> {
    const n = labels.length;
    this.rows += n;
    const times = typeof t === "number" ? new Float32Array(n).fill(t) : Float32Array.from(t);
    const { v } = await this.velocitySession.run({
      t: new ort.Tensor("float32", times, [n]),
      x: new ort.Tensor("float32", x, [n, ...this.description.latent_shape]),
      y: new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [n]),
    });
    return v.data as Float32Array;
  }

  /** Normalised latents → 8-bit images, one after the other. */
  async decode(latents: Float32Array): Promise<Uint8Array> {
    const shape = [latents.length / this.latentSize, ...this.description.latent_shape];
    const { images } = await this.decoderSession.run({ latents: new ort.Tensor("float32", latents, shape) });
    return images.data as Uint8Array;
  }

  /** 8-bit images → normalised latents. */
  async encode(images: Uint8Array): Promise<Float32Array> {
    const [c, h, w] = this.description.image_shape;
    const tensor = new ort.Tensor("uint8", images, [images.length / (c * h * w), c, h, w]);
    const { latents } = await (await this.encoderSession).run({ images: tensor });
    return latents.data as Float32Array;
  }

  get latentSize(): number {
    return this.description.latent_shape.reduce((a, b) => a * b);
  }
}

const session = (graph: Uint8Array) =>
  ort.InferenceSession.create(graph, { executionProviders: ["wasm"], graphOptimizationLevel: "all" });

/** Raises an error that names the file which is missing. */
async function fetched(url: string): Promise<Response> {
  const name = url.slice(url.lastIndexOf("/") + 1);
  const response = await fetch(url).catch((error: Error) => {
    throw new Error(`${name} could not be loaded (${error.message}).`);
  });
  if (!response.ok) throw new Error(`${name} is missing (HTTP ${response.status}). Run “make page” to build this page anew.`);
  return response;
}

/** A file that was compressed with gzip. */
async function unpacked(url: string, progress: (bytes: number) => void): Promise<Uint8Array> {
  const { body } = await fetched(url);
  const counted = body!.pipeThrough(
    new TransformStream<Uint8Array, Uint8Array>({
      transform(chunk, controller) {
        progress(chunk.length);
        controller.enqueue(chunk);
      },
    }),
  );
  const content = counted.pipeThrough(new DecompressionStream("gzip") as TransformStream<Uint8Array, Uint8Array>);
  return new Uint8Array(await new Response(content).arrayBuffer());
}

/** Undo the split into even and odd bytes, which makes float16 weights a tenth smaller when compressed. */
function joined(planes: Uint8Array): Uint8Array {
  const half = (planes.length + 1) >> 1;
  const bytes = new Uint8Array(planes.length);
  for (let i = 0; i < half; i++) bytes[2 * i] = planes[i];
  for (let i = half; i < planes.length; i++) bytes[2 * (i - half) + 1] = planes[i];
  return bytes;
}
