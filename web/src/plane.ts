// The way of a latent over a cloud of latents, in two principal components.

import type { Cloud } from "./description";

type Point = [number, number];

export class Plane {
  private points: Point[] = [];
  private at = 0; // where on the path, in steps

  constructor(
    private canvas: HTMLCanvasElement,
    private cloud: Cloud,
  ) {
    new ResizeObserver(() => this.paint()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
  }

  show(points: Point[], at: number): void {
    [this.points, this.at] = [points, at];
    this.paint();
  }

  private paint(): void {
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (!width) return;
    [this.canvas.width, this.canvas.height] = [width * devicePixelRatio, height * devicePixelRatio];
    const context = this.canvas.getContext("2d")!;
    context.scale(devicePixelRatio, devicePixelRatio);
    const style = getComputedStyle(document.documentElement);
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const all = [...this.cloud.points, ...this.points];
    const range = (axis: 0 | 1): Point => [Math.min(...all.map((p) => p[axis])), Math.max(...all.map((p) => p[axis]))];
    const [[left, right], [bottom, top]] = [range(0), range(1)];
    const margin = 12;
    const place = ([x, y]: Point): Point => [
      margin + ((x - left) / (right - left)) * (width - 2 * margin),
      height - margin - ((y - bottom) / (top - bottom)) * (height - 2 * margin),
    ];
    const classes = Math.max(...this.cloud.labels) + 1;
    const colour = (label: number, alpha: number) =>
      `hsl(${(360 * label) / classes} ${dark ? "65% 68%" : "60% 46%"} / ${alpha})`;

    this.cloud.points.forEach((point, i) => {
      context.fillStyle = colour(this.cloud.labels[i], 0.38);
      context.beginPath();
      context.arc(...place(point), 1.7, 0, 7);
      context.fill();
    });
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineJoin = context.lineCap = "round";
    context.lineWidth = 4;
    context.font = `650 ${Math.max(15, width / 30)}px system-ui, sans-serif`;
    context.strokeStyle = style.getPropertyValue("--card");
    for (let label = 0; label < classes; label++) {
      const own = this.cloud.points.filter((_, i) => this.cloud.labels[i] === label);
      if (!own.length) continue;
      const centre = place([0, 1].map((axis) => own.reduce((total, p) => total + p[axis], 0) / own.length) as Point);
      context.strokeText(String(label), ...centre);
      context.fillStyle = colour(label, 1);
      context.fillText(String(label), ...centre);
    }
    if (!this.points.length) return;

    const whole = Math.floor(this.at);
    const [a, b] = [this.points[whole], this.points[Math.min(whole + 1, this.points.length - 1)]];
    const now = [0, 1].map((axis) => a[axis] + (this.at - whole) * (b[axis] - a[axis])) as Point;
    const line = (points: Point[], ink: string, thickness: number) => {
      context.beginPath();
      points.map(place).forEach((p, i) => (i ? context.lineTo(...p) : context.moveTo(...p)));
      context.strokeStyle = ink;
      context.lineWidth = thickness;
      context.stroke();
    };
    const ink = style.getPropertyValue("--ink");
    line(this.points, style.getPropertyValue("--card"), 6);
    line(this.points, style.getPropertyValue("--soft"), 1.5);
    line([...this.points.slice(0, whole + 1), now], ink, 3);
    context.beginPath();
    context.arc(...place(now), 6, 0, 7);
    context.fillStyle = style.getPropertyValue("--accent");
    context.fill();
    context.strokeStyle = style.getPropertyValue("--card");
    context.lineWidth = 2.5;
    context.stroke();
  }
}
