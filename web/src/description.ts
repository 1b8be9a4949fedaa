// What web/export.py writes beside the graphs.

import type { Path, Solver } from "./flow";

/** model.json, as web/export.py writes it. */
export interface Description extends Path {
  classes: number;
  null_label: number;
  image_shape: [number, number, number];
  latent_shape: [number, number, number];
  end: number;
  parameters: number;
  sampler: { solver: string; steps: number; time_shift: number; guidance_scale: number; guidance_interval: [number, number] };
  files: Record<"velocity.bin" | "encoder.bin" | "decoder.bin", { bytes: number }>;
}

/** cloud.json: latents in two principal components. */
export interface Cloud {
  source: string;
  mean: number[];
  components: [number[], number[]];
  points: [number, number][];
  labels: number[];
}

export const asSolver = (name: string): Solver =>
  name === "euler" || name === "heun" || name === "rk4" ? name : "midpoint";
