// What lfm.sampling and lfm.flow.path do, on Float32Arrays: time grid, solvers, guidance, path. t runs from 0 (noise) to 1.

export const SOLVERS = ["euler", "midpoint", "heun", "rk4"] as const;
export type Solver = (typeof SOLVERS)[number];

export interface Sampler {
  solver: Solver;
  steps: number;
  guidance: number;
  from: number; // guide from this t …
  to: number; // … to this one
}

/** dx/dt at (t, x). */
export type Field = (t: number, x: Float32Array) => Promise<Float32Array>;

/** v(t, x, labels) of a batch. */
export type Velocity = (t: number, x: Float32Array, labels: number[]) => Promise<Float32Array>;

/** The steps + 1 times at which steps begin and end; see `lfm.sampling.solver.time_grid`. */
export function timeGrid(steps: number, shift = 1, end = 1): Float32Array {
  return Float32Array.from({ length: steps + 1 }, (_, i) => {
    const s = i / steps;
    return (end * s) / (s + shift * (1 - s));
  });
}

/** Σ of arrays, each with its weight. */
export function sum(...terms: [number, Float32Array][]): Float32Array {
  const out = new Float32Array(terms[0][1].length);
  for (let i = 0; i < out.length; i++) for (const [weight, array] of terms) out[i] += weight * array[i];
  return out;
}

/**
 * Follow a velocity along a grid, forward or (with a falling grid) backward.
 * @param seen called with (t, x, v) where each step begins.
 */
export async function integrate(
  field: Field,
  x: Float32Array,
  grid: Float32Array,
  solver: Solver,
  seen: (t: number, x: Float32Array, v: Float32Array) => void = () => {},
): Promise<Float32Array> {
  for (let i = 0; i + 1 < grid.length; i++) {
    const [t, h] = [grid[i], grid[i + 1] - grid[i]];
    const k1 = await field(t, x);
    seen(t, x, k1);
    if (solver === "euler") {
      x = sum([1, x], [h, k1]);
    } else if (solver === "midpoint") {
      const k2 = await field(t + h / 2, sum([1, x], [h / 2, k1]));
      x = sum([1, x], [h, k2]);
    } else if (solver === "heun") {
      const k2 = await field(t + h, sum([1, x], [h, k1]));
      x = sum([1, x], [h / 2, k1], [h / 2, k2]);
    } else {
      // the 3/8 rule
      const k2 = await field(t + h / 3, sum([1, x], [h / 3, k1]));
      const k3 = await field(t + (2 * h) / 3, sum([1, x], [h, k2], [-h / 3, k1]));
      const k4 = await field(t + h, sum([1, x], [h, k1], [-h, k2], [h, k3]));
      x = sum([1, x], [h / 8, k1], [(3 * h) / 8, k2], [(3 * h) / 8, k3], [h / 8, k4]);
    }
  }
  return x;
}

const ROUNDING = 2e-5; // what a time may lie off an interval's end, as in lfm.sampling.guidance

/** Classifier-free guidance for t within an interval; see `lfm.sampling.guidance.guided`. */
export function guided(velocity: Velocity, labels: number[], nullLabel: number, s: Sampler): Field {
  const none = labels.map(() => nullLabel);
  return async (t, x) => {
    if (s.guidance === 1 || t < s.from - ROUNDING || t > s.to + ROUNDING) return velocity(t, x, labels);
    if (s.guidance === 0) return velocity(t, x, none);
    const both = new Float32Array(2 * x.length);
    both.set(x);
    both.set(x, x.length);
    const v = await velocity(t, both, [...labels, ...none]);
    return sum([s.guidance, v.subarray(0, x.length)], [1 - s.guidance, v.subarray(x.length)]);
  };
}

/** Two fields of the batch [x; x], mixed row by row: row i takes (1 − shares[i]) of the first and shares[i] of the second. */
export function mixed(field: Field, shares: number[]): Field {
  return async (t, x) => {
    const both = new Float32Array(2 * x.length);
    both.set(x);
    both.set(x, x.length);
    const v = await field(t, both);
    const size = x.length / shares.length;
    return x.map((_, i) => {
      const share = shares[Math.floor(i / size)];
      return (1 - share) * v[i] + share * v[x.length + i];
    });
  };
}

/** From noise a (share 0) to noise b (share 1) along the sphere that noise lies near; see `lfm.sampling.inversion.slerp`. */
export function slerp(a: Float32Array, b: Float32Array, share: number): Float32Array {
  const dot = (u: Float32Array, w: Float32Array) => u.reduce((total, value, i) => total + value * w[i], 0);
  const cosine = dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  const angle = Math.acos(Math.min(1 - 1e-6, Math.max(-1 + 1e-6, cosine)));
  return sum([Math.sin((1 - share) * angle) / Math.sin(angle), a], [Math.sin(share * angle) / Math.sin(angle), b]);
}

export interface Path {
  path: string;
  sigma_min: number;
}

interface Coefficients {
  alpha: number;
  sigma: number;
  dAlpha: number;
  dSigma: number;
}

/** α, σ and their derivatives at t; see `lfm.flow.path`. */
export function coefficients({ path, sigma_min }: Path, t: number): Coefficients {
  if (path === "cond_ot") return { alpha: t, sigma: 1 - (1 - sigma_min) * t, dAlpha: 1, dSigma: sigma_min - 1 };
  if (path === "gvp") {
    const [angle, rate] = [(t * Math.PI) / 2, Math.PI / 2];
    const [sin, cos] = [Math.sin(angle), Math.cos(angle)];
    return { alpha: sin, sigma: cos, dAlpha: rate * cos, dSigma: -rate * sin };
  }
  const [low, high, s] = [0.1, 20, 1 - t];
  const [integral, rate] = [(s * s * (high - low)) / 2 + s * low, s * (high - low) + low];
  const [alpha, sigma] = [Math.exp(-integral / 2), Math.sqrt(-Math.expm1(-integral))];
  return { alpha, sigma, dAlpha: (alpha * rate) / 2, dSigma: (-alpha * alpha * rate) / (2 * sigma) };
}

/** E[x1 | x_t], from the velocity at x_t. */
export function predictedData(path: Path, t: number, x: Float32Array, v: Float32Array): Float32Array {
  const c = coefficients(path, t);
  const determinant = c.alpha * c.dSigma - c.dAlpha * c.sigma;
  return sum([c.dSigma / determinant, x], [-c.sigma / determinant, v]);
}
