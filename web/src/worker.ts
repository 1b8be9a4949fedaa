// What the page computes, off its thread. A call is a message {id, method, args}; the answer is {id, value} or {id, error}.

import { coefficients, guided, integrate, mixed, predictedData, slerp, sum, timeGrid, type Sampler } from "./flow";
import { Model } from "./model";
import { normal } from "./random";

const INVERSION_STEPS = 10; // of rk4
const READING_TIMES = [0.3, 0.5];

let model: Model;

/** What a result cost: milliseconds, and passes through the transformer an image. */
export interface Cost {
  ms: number;
  evaluations: number;
}

async function costing<T>(images: number, compute: () => Promise<T>): Promise<T & Cost> {
  const [start, rows] = [performance.now(), model.rows];
  const value = await compute();
  return { ...value, ms: performance.now() - start, evaluations: (model.rows - rows) / images };
}

const field = (labels: number[], s: Sampler) =>
  guided((t, x, y) => model.velocity(t, x, y), labels, model.description.null_label, s);

const grid = (steps: number) => timeGrid(steps, model.description.sampler.time_shift, model.description.end);

function repeated(x: Float32Array, times: number): Float32Array {
  const out = new Float32Array(x.length * times);
  for (let i = 0; i < times; i++) out.set(x, i * x.length);
  return out;
}

const api = {
  async load(base: string) {
    model = await Model.load(base, (loaded, total) => postMessage({ progress: [loaded, total] }));
    return { description: model.description, cloud: model.cloud };
  },

  /** The noise of one row of a seed, the same as Python's. */
  async noise(seed: number, row: number) {
    return normal(seed, "sample", row, model.latentSize);
  },

  /** An image → its label, unless that is given, and its noise. */
  async invert(image: Uint8Array, label: number | null) {
    return costing(1, async () => {
      const latent = await model.encode(image);
      const known = label ?? (model.description.classes ? await read(latent) : model.description.null_label);
      const plain: Sampler = { solver: "rk4", steps: INVERSION_STEPS, guidance: 1, from: 0, to: 1 };
      const back = timeGrid(INVERSION_STEPS, 1, model.description.end).reverse();
      return { noise: await integrate(field([known], plain), latent, back, "rk4"), label: known };
    });
  },

  /** One noise followed with each of some labels. */
  async draw(noise: Float32Array, labels: number[], s: Sampler) {
    return costing(labels.length, async () => {
      const x0 = repeated(noise, labels.length);
      return { images: await model.decode(await integrate(field(labels, s), x0, grid(s.steps), s.solver)) };
    });
  },

  /** The way from noise to data: at every time of the grid the state, what it is predicted to become, and where it stands. */
  async trace(noise: Float32Array, label: number, s: Sampler) {
    return costing(1, async () => {
      const times: number[] = [];
      const [states, predicted]: Float32Array[][] = [[], []];
      const see = (t: number, x: Float32Array, v: Float32Array) => {
        times.push(t);
        states.push(x);
        predicted.push(predictedData(model.description, t, x, v));
      };
      const velocity = field([label], s);
      const x1 = await integrate(velocity, noise, grid(s.steps), s.solver, see);
      times.push(model.description.end);
      states.push(x1);
      predicted.push(x1);
      return {
        times,
        points: states.map(projected),
        states: await decoded(states),
        predicted: await decoded(predicted),
      };
    });
  },

  /** From noise a with one label to noise b with another, at some shares of the way. */
  async between(a: Float32Array, b: Float32Array, labels: [number, number], shares: number[], s: Sampler) {
    return costing(shares.length, async () => {
      const x0 = concatenated(shares.map((share) => slerp(a, b, share)));
      const both = [...shares.map(() => labels[0]), ...shares.map(() => labels[1])];
      const x1 = await integrate(mixed(field(both, s), shares), x0, grid(s.steps), s.solver);
      return { images: await model.decode(x1) };
    });
  },
};

export type Api = typeof api;

/**
 * The label whose velocity best explains a latent: the flow as its own classifier (Li et al. 2023, "Your diffusion model is
 * secretly a zero-shot classifier"). Noise comes in pairs ±x0, which halves the variance.
 */
async function read(latent: Float32Array): Promise<number> {
  const classes = model.description.classes;
  const losses = new Array<number>(classes).fill(0);
  for (const [draw, t] of READING_TIMES.entries()) {
    const noise = normal(0, "reading", draw, latent.length);
    for (const sign of [1, -1]) {
      const x0 = sum([sign, noise]);
      const { alpha, sigma, dAlpha, dSigma } = coefficients(model.description, t);
      const xt = sum([alpha, latent], [sigma, x0]);
      const target = sum([dAlpha, latent], [dSigma, x0]);
      const v = await model.velocity(t, repeated(xt, classes), [...losses.keys()]);
      for (let c = 0; c < classes; c++)
        for (let i = 0; i < latent.length; i++) losses[c] += (v[c * latent.length + i] - target[i]) ** 2;
    }
  }
  return losses.indexOf(Math.min(...losses));
}

function concatenated(arrays: Float32Array[]): Float32Array {
  const out = new Float32Array(arrays.reduce((total, a) => total + a.length, 0));
  let at = 0;
  for (const array of arrays) {
    out.set(array, at);
    at += array.length;
  }
  return out;
}

async function decoded(latents: Float32Array[]): Promise<Uint8Array[]> {
  const images = await model.decode(concatenated(latents));
  const size = images.length / latents.length;
  return latents.map((_, i) => images.slice(i * size, (i + 1) * size));
}

/** A latent in two principal components. */
function projected(x: Float32Array): [number, number] {
  const { mean, components } = model.cloud;
  const along = (component: number[]) => component.reduce((total, weight, i) => total + weight * (x[i] - mean[i]), 0);
  return [along(components[0]), along(components[1])];
}

addEventListener("message", async ({ data: { id, method, args } }) => {
  try {
    const call = api[method as keyof Api] as (...args: unknown[]) => Promise<unknown>;
    postMessage({ id, value: await call(...args) });
  } catch (error) {
    postMessage({ id, error: error instanceof Error ? error.message : String(error) });
  }
});
