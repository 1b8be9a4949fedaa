// What the page shows, and the same as text in its address: a link shows the same picture.

import { SOLVERS, type Sampler, type Solver } from "./flow";
import { decodeStrokes, encodeStrokes, type Stroke } from "./ink";

export interface State extends Sampler {
  seed: number;
  row: number; // which hand of the seed
  strokes: Stroke[]; // a drawing in place of that hand; empty: none
  meant: number | null; // what the drawing shows; null: read by the model
  digit: number; // selected
  time: number;
  first: number;
  second: number;
  share: number;
}

export const LIMITS = {
  seed: [0, 2 ** 32 - 1],
  row: [0, 99],
  guidance: [0, 8],
  from: [0, 1],
  to: [0, 1],
  steps: [1, 50],
  time: [0, 1],
  share: [0, 1],
} as const;
type Limited = keyof typeof LIMITS;
const WHOLE: Limited[] = ["seed", "row", "steps"];

export function toAddress(s: State): string {
  const short = (v: number) => String(Math.round(v * 1000) / 1000);
  const values = new URLSearchParams();
  for (const name of Object.keys(LIMITS) as Limited[]) values.set(name, short(s[name]));
  values.set("solver", s.solver);
  for (const name of ["digit", "meant", "first", "second"] as const) if (s[name] !== null) values.set(name, String(s[name]));
  if (s.strokes.length) values.set("ink", encodeStrokes(s.strokes));
  return `#${values}`;
}

/** The defaults, with what the address says; what it says wrongly is left out. */
export function fromAddress(address: string, defaults: State, classes: number): State {
  const [values, s] = [new URLSearchParams(address.replace(/^#/, "")), { ...defaults }];
  for (const name of Object.keys(LIMITS) as Limited[]) {
    const text = values.get(name);
    const value = Number(text);
    const [least, most] = LIMITS[name];
    if (!text || !(value >= least && value <= most) || (WHOLE.includes(name) && !Number.isInteger(value))) continue;
    s[name] = value;
  }
  const solver = values.get("solver") as Solver;
  if (SOLVERS.includes(solver)) s.solver = solver;
  for (const name of ["digit", "meant", "first", "second"] as const) {
    const value = values.get(name);
    if (value && /^\d+$/.test(value) && Number(value) < classes) s[name] = Number(value);
  }
  s.strokes = decodeStrokes(values.get("ink") ?? "");
  if (s.from > s.to) s.to = s.from;
  return s;
}
