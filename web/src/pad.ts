// The drawing pad: pointer (mouse, finger, pen) or arrow keys in, strokes out.

import { rounded, type Stroke } from "./ink";

const CLOSEST = 0.012; // points nearer than this to the last one are left out
const PAUSE = 250; // ms after a stroke, in which another may follow
const KEY_STEP = 0.03;
const LINE = 0.055; // width of a line, as a part of the pad

export class Pad {
  strokes: Stroke[] = [];
  ghost: ImageData | null = null; // drawn faintly while the pad is empty
  private pointer: number | null = null;
  private timer = 0;
  private cursor: [number, number] | null = null; // of the keyboard's pen
  private penDown = false;

  /** @param changed called when a drawing is finished for now. */
  constructor(
    private canvas: HTMLCanvasElement,
    private changed: () => void,
  ) {
    canvas.addEventListener("pointerdown", (event) => {
      if (this.pointer !== null || event.button !== 0) return;
      event.preventDefault();
      this.pointer = event.pointerId;
      this.cursor = null;
      canvas.setPointerCapture(event.pointerId);
      clearTimeout(this.timer);
      this.strokes.push([]);
      this.add(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerId !== this.pointer) return;
      const events = event.getCoalescedEvents?.() ?? [];
      for (const one of events.length ? events : [event]) this.add(one);
    });
    for (const type of ["pointerup", "pointercancel"] as const)
      canvas.addEventListener(type, (event) => {
        if (event.pointerId !== this.pointer) return;
        this.pointer = null;
        this.finish(PAUSE);
      });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => {
      this.cursor = null;
      this.paint();
    });
    new ResizeObserver(() => this.paint()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
  }

  private finish(delay: number): void {
    clearTimeout(this.timer);
    this.timer = window.setTimeout(this.changed, delay);
  }

  private add(event: PointerEvent): void {
    const box = this.canvas.getBoundingClientRect();
    this.point((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }

  private point(x: number, y: number): void {
    const stroke = this.strokes.at(-1)!;
    const [lastX, lastY] = stroke.slice(-2);
    if (stroke.length && Math.hypot(x - lastX, y - lastY) < CLOSEST) return;
    stroke.push(rounded(x), rounded(y));
    this.paint();
  }

  /** Arrow keys move a pen, the space bar lifts it or puts it down. */
  private key(event: KeyboardEvent): void {
    const moves: Record<string, [number, number]> = {
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
    };
    const move = moves[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    this.cursor ??= [0.5, 0.2];
    if (event.key === " ") {
      this.penDown = !this.penDown;
      if (this.penDown) {
        this.strokes.push([]);
        this.point(...this.cursor);
      } else {
        this.finish(0);
      }
    } else {
      this.cursor = this.cursor.map((v, i) => rounded(v + KEY_STEP * move[i])) as [number, number];
      if (this.penDown) this.point(...this.cursor);
    }
    this.paint();
  }

  undo(): void {
    this.strokes.pop();
    this.penDown = false;
    this.paint();
    this.changed();
  }

  show(strokes: Stroke[]): void {
    this.strokes = strokes;
    this.penDown = false;
    clearTimeout(this.timer);
    this.paint();
  }

  paint(): void {
    const side = Math.round(this.canvas.clientWidth * devicePixelRatio) || 560;
    if (this.canvas.width !== side) [this.canvas.width, this.canvas.height] = [side, side];
    const context = this.canvas.getContext("2d")!;
    const style = getComputedStyle(document.documentElement);
    context.clearRect(0, 0, side, side);
    if (!this.strokes.length && this.ghost) this.paintGhost(context, side);
    context.strokeStyle = context.fillStyle = style.getPropertyValue("--ink");
    context.lineWidth = LINE * side;
    context.lineCap = context.lineJoin = "round";
    for (const stroke of this.strokes) {
      context.beginPath();
      context.moveTo(stroke[0] * side, stroke[1] * side);
      for (let i = 0; i < stroke.length; i += 2) context.lineTo(stroke[i] * side, stroke[i + 1] * side);
      context.stroke();
    }
    if (this.cursor) {
      context.beginPath();
      context.arc(this.cursor[0] * side, this.cursor[1] * side, (LINE * side) / 2, 0, 7);
      context.lineWidth = 3;
      context.strokeStyle = style.getPropertyValue("--accent");
      context.stroke();
    }
  }

  private paintGhost(context: CanvasRenderingContext2D, side: number): void {
    const ghost = this.ghost!;
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const small = new OffscreenCanvas(ghost.width, ghost.height);
    const image = new ImageData(ghost.width, ghost.height);
    for (let i = 0; i < image.data.length; i += 4) {
      image.data.fill(dark ? 255 : 0, i, i + 3);
      image.data[i + 3] = ghost.data[i] * 0.14;
    }
    small.getContext("2d")!.putImageData(image, 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(small, 0, 0, side, side);
  }
}
