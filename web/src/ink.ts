// Strokes of a pen → an image as MNIST has it: the digit in a box of 20 pixels, its centre of mass in the middle of 28.

/** Points x, y in [0, 1] of one stroke, one after the other: [x0, y0, x1, y1, …]. */
export type Stroke = number[];

const BOX = 20;
const PEN = 1.05; // half the width of a line, in pixels of the image
const EDGE = 0.75; // how far a line fades, in pixels

/** Grey levels, side × side. An empty drawing is black. */
export function rasterise(strokes: Stroke[], side = 28): Uint8Array {
  const points = strokes.flatMap((s) => pairs(s));
  const pixels = new Float64Array(side * side);
  if (!points.length) return new Uint8Array(pixels.length);
  const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const box = (BOX * side) / 28 - 2 * PEN;
  const scale = box / Math.max(right - left, bottom - top, 0.05);
  const middle = (side - 1) / 2;
  const place = ([x, y]: Point): Point => [
    (x - (left + right) / 2) * scale + middle,
    (y - (top + bottom) / 2) * scale + middle,
  ];
  const lines = strokes.map((s) => pairs(s).map(place));
  let [total, sumX, sumY] = [0, 0, 0];
  const draw = (shiftX: number, shiftY: number) => {
    for (let y = 0; y < side; y++)
      for (let x = 0; x < side; x++) pixels[y * side + x] = coverage(lines, x - shiftX, y - shiftY);
  };
  draw(0, 0);
  pixels.forEach((value, i) => {
    total += value;
    sumX += value * (i % side);
    sumY += value * Math.floor(i / side);
  });
  draw(Math.round(middle - sumX / total), Math.round(middle - sumY / total));
  return Uint8Array.from(pixels, (value) => Math.round(255 * value));
}

type Point = [number, number];

function pairs(stroke: Stroke): Point[] {
  return Array.from({ length: stroke.length / 2 }, (_, i) => [stroke[2 * i], stroke[2 * i + 1]]);
}

/** How much of a pixel ink covers, 0 … 1: by its distance to the nearest line. */
function coverage(lines: Point[][], x: number, y: number): number {
  let nearest = Infinity;
  for (const line of lines)
    for (let i = 0; i < line.length; i++) nearest = Math.min(nearest, distance(x, y, line[Math.max(0, i - 1)], line[i]));
  return Math.min(1, Math.max(0, (PEN + EDGE - nearest) / EDGE));
}

function distance(x: number, y: number, [ax, ay]: Point, [bx, by]: Point): number {
  const [dx, dy] = [bx - ax, by - ay];
  const square = dx * dx + dy * dy;
  const along = square ? Math.min(1, Math.max(0, ((x - ax) * dx + (y - ay) * dy) / square)) : 0;
  return Math.hypot(x - ax - along * dx, y - ay - along * dy);
}

const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const GRID = 64 ** 2 - 1;

/** A coordinate as an address holds it. Drawings are rounded at once, so that a link draws the same. */
export const rounded = (v: number) => Math.round(Math.min(1, Math.max(0, v)) * GRID) / GRID;

/** Strokes as text for an address: four characters a point, a dot between strokes. */
export function encodeStrokes(strokes: Stroke[]): string {
  const text = (v: number) => DIGITS[Math.round(v * GRID) >> 6] + DIGITS[Math.round(v * GRID) & 63];
  return strokes.map((s) => s.map(text).join("")).join(".");
}

export function decodeStrokes(text: string): Stroke[] {
  const stroke = (s: string) =>
    Array.from({ length: s.length / 2 }, (_, i) => (64 * DIGITS.indexOf(s[2 * i]) + DIGITS.indexOf(s[2 * i + 1])) / GRID);
  return /^[\w-]+(\.[\w-]+)*$/.test(text) && text.split(".").every((s) => s.length % 4 === 0) ? text.split(".").map(stroke) : [];
}
