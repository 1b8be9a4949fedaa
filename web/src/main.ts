// The page: one state, one function that brings the pictures up to date with it.

import { Client } from "./client";
import { Controls } from "./controls";
import { rasterise } from "./ink";
import { asSolver, type Cloud, type Description } from "./description";
import { Pad } from "./pad";
import { gif, save, sheet, show, toImage, type Shape } from "./pictures";
import { Plane } from "./plane";
import { fromAddress, toAddress, type State } from "./state";
import type { Cost } from "./worker";

const FRAMES = 9; // of the strip between two digits
const PLAY_MS = 2400;

const $ = <T extends HTMLElement = HTMLElement>(id: string) => document.getElementById(id) as T;
const canvas = (id: string) => $<HTMLCanvasElement>(id);
const input = (id: string) => $<HTMLInputElement>(id);
const select = (id: string) => $<HTMLSelectElement>(id);

interface Trace {
  times: number[];
  points: [number, number][];
  states: Uint8Array[];
  predicted: Uint8Array[];
}

let state: State;
let defaults: State;
let description: Description;
let shape: Shape;
let noise: Float32Array; // of the hand
let images: Uint8Array[] = []; // of the hand, a class each
let trace: Trace;
let plane: Plane;
let controls: Controls;
const pad = new Pad(canvas("pad"), drawn);

const client = new Client((loaded, total) => {
  $<HTMLProgressElement>("bar").value = loaded / total;
  const mb = (bytes: number) => (bytes / 1e6).toFixed(1);
  $("loaded").textContent =
    loaded < total ? `Loading the model: ${mb(loaded)} of ${mb(total)} MB` : "Starting the model …";
});

function fail(error: unknown): void {
  $("error").hidden = false;
  $("error").textContent = error instanceof Error ? error.message : String(error);
  $("loading").hidden = true;
}

// --- from state to pictures: each task runs where what it depends on has changed --------------------------------------

const done = new Map<string, string>(); // task → what it was last done for
let [running, again, follow] = [false, false, false];

const classes = () => [...Array(Math.max(1, description.classes)).keys()];
const asked = (labels: number[]) => (description.classes ? labels : labels.map(() => description.null_label));
const handKey = () => JSON.stringify([state.seed, state.row, state.strokes, state.meant]);
const samplerKey = () => JSON.stringify([state.solver, state.steps, state.guidance, state.from, state.to]);

async function task(name: string, key: string, work: () => Promise<void>): Promise<void> {
  if (again || done.get(name) === key) return;
  await work();
  done.set(name, key);
}

/** Bring everything up to date; a change meanwhile starts over with what has not been done yet. */
async function refresh(): Promise<void> {
  again = true;
  if (running) return;
  running = true;
  document.body.dataset.state = "busy";
  try {
    while (again) {
      again = false;
      await tasks();
    }
    history.replaceState(null, "", toAddress(state));
    document.body.dataset.state = "ready";
  } catch (error) {
    fail(error);
  } finally {
    running = false;
  }
}

async function tasks(): Promise<void> {
  const [hand, sampler] = [handKey(), samplerKey()];
  await task("hand", hand, findHand);
  const digit = state.digit;
  const pictures = `${hand} ${sampler}`;
  if (done.get("ten") !== pictures)
    await task("one", `${pictures} ${digit}`, async () => {
      const one = await client.call("draw", noise, asked([digit]), state);
      images[digit] = one.images;
      showDigit(digit);
      cost(one, "one digit");
    });
  await task("ten", pictures, async () => {
    const ten = await client.call("draw", noise, asked(classes()), state);
    const size = ten.images.length / classes().length;
    images = classes().map((c) => ten.images.slice(c * size, (c + 1) * size));
    classes().forEach(showDigit);
    cost(ten, images.length > 1 ? `${images.length} digits` : "one picture");
    announce(ten);
  });
  await task("trace", `${pictures} ${digit}`, async () => {
    trace = await client.call("trace", noise, asked([digit])[0], state);
    showTime();
  });
  const ends = JSON.stringify([pictures, state.first, state.second]);
  await task("middle", `${ends} ${state.share}`, async () => {
    const middle = await between([state.share]);
    show(canvas("middle"), middle[0], shape);
  });
  await task("frames", ends, async () => {
    const frames = await between(Array.from({ length: FRAMES }, (_, i) => i / (FRAMES - 1)));
    frames.forEach((image, i) => show($("frames").children[i] as HTMLCanvasElement, image, shape));
  });
}

async function findHand(): Promise<void> {
  if (!state.strokes.length) {
    noise = await client.call("noise", state.seed, state.row);
    return;
  }
  const [channels, height, width] = shape;
  const ink = rasterise(state.strokes, Math.min(height, width));
  const image = new Uint8Array(channels * height * width);
  const side = Math.min(height, width);
  const [top, left] = [(height - side) >> 1, (width - side) >> 1];
  for (let c = 0; c < channels; c++)
    for (let y = 0; y < side; y++)
      image.set(ink.subarray(y * side, (y + 1) * side), (c * height + top + y) * width + left);
  show(canvas("seen"), image, shape);
  const found = await client.call("invert", image, state.meant);
  noise = found.noise;
  drawnLabel = found.label;
  if (follow && !again) {
    [state.digit, follow] = [found.label, false];
    showState();
  }
}

let drawnLabel: number | null = null;

async function between(shares: number[]): Promise<Uint8Array[]> {
  const other = await client.call("noise", state.seed, (state.row + 1) % 100);
  const labels = asked([state.first, state.second]) as [number, number];
  const result = await client.call("between", noise, other, labels, shares, state);
  const size = result.images.length / shares.length;
  return shares.map((_, i) => result.images.slice(i * size, (i + 1) * size));
}

// --- from pictures to the screen -------------------------------------------------------------------------------------

function showDigit(label: number): void {
  const button = $("ten").children[label] as HTMLElement;
  show(button.querySelector("canvas")!, images[label], shape);
  button.classList.toggle("drawn", !!state.strokes.length && label === drawnLabel);
  button.classList.remove("stale");
  if (label === state.digit) {
    pad.ghost = toImage(images[label], shape);
    pad.paint();
    if ($("loading").hidden) return;
    $("loading").hidden = true;
    document.body.dataset.firstDigit = String(Math.round(performance.now() - readyAt));
  }
}

let readyAt = 0;

function cost({ ms, evaluations }: Cost, what: string): void {
  const [time, passes] = $("meter").querySelectorAll("b");
  time.textContent = `${ms.toFixed(0)} ms`;
  passes.textContent = evaluations.toFixed(evaluations % 1 ? 1 : 0);
  $("meter").querySelector("i")!.textContent = `for ${what}`;
}

function announce({ ms }: Cost): void {
  const whose = state.strokes.length ? `Read as ${drawnLabel}. Your hand` : `Hand ${state.row} of seed ${state.seed}`;
  $("status").textContent = `${whose}, ${images.length > 1 ? "all ten" : "drawn"} in ${(ms / 1000).toFixed(2)} s`;
}

function showTime(): void {
  if (!trace) return;
  const place = trace.times.findIndex((t) => t >= state.time * description.end - 1e-6);
  const after = place < 0 ? trace.times.length - 1 : place;
  const before = Math.max(0, after - 1);
  const share = after ? (state.time * description.end - trace.times[before]) / (trace.times[after] - trace.times[before]) : 0;
  const nearest = share > 0.5 ? after : before;
  show(canvas("state"), trace.states[nearest], shape);
  show(canvas("predicted"), trace.predicted[nearest], shape);
  plane.show(trace.points, after ? before + share : 0);
  input("time").value = String(state.time);
  $("time-value").textContent = `t = ${state.time.toFixed(2)}`;
}

/** Controls, as the state has them. */
function showState(): void {
  controls.show();
  [...$("ten").children].forEach((button, label) => {
    button.setAttribute("aria-checked", String(label === state.digit));
    (button as HTMLElement).tabIndex = label === state.digit ? 0 : -1;
  });
  const drawing = state.strokes.length > 0;
  $("hint").hidden = drawing;
  canvas("seen").parentElement!.hidden = !drawing;
  canvas("pad").setAttribute(
    "aria-label",
    drawing
      ? `Drawing pad, ${state.strokes.length} strokes drawn.`
      : "Drawing pad, empty. Draw a digit with mouse, finger or pen; or with the arrow keys, and the space bar to put the pen down and to lift it.",
  );
  for (const id of ["undo", "clear", "meant"]) $<HTMLButtonElement>(id).disabled = !drawing;
  select("meant").value = state.meant === null ? "" : String(state.meant);
  [select("first").value, select("second").value] = [String(state.first), String(state.second)];
  input("share").value = String(state.share);
  $("flow-digit").textContent = description.classes ? String(state.digit) : "picture";
  showTime();
}

// --- what a person does ----------------------------------------------------------------------------------------------

function change(values: Partial<State>): void {
  const before = handKey();
  Object.assign(state, values);
  if (!state.strokes.length) [pad.strokes.length && pad.show([]), (drawnLabel = null)];
  if (handKey() !== before) for (const button of $("ten").children) button.classList.add("stale");
  showState();
  void refresh();
}

function drawn(): void {
  if (!description) return;
  follow = pad.strokes.length > 0;
  change({ strokes: pad.strokes.map((stroke) => [...stroke]), meant: null });
}

function listen(): void {
  const classList = classes();
  for (const id of ["meant", "first", "second"]) {
    if (id === "meant") select(id).add(new Option("auto", ""));
    for (const label of classList) select(id).add(new Option(String(label)));
  }
  for (const label of classList) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", role: "radio", ariaLabel: String(label) });
    button.append(Object.assign(document.createElement("canvas"), { className: "digit", width: 28, height: 28 }), String(label));
    button.addEventListener("click", () => change({ digit: label }));
    $("ten").append(button);
  }
  for (let i = 0; i < FRAMES; i++)
    $("frames").append(Object.assign(document.createElement("canvas"), { className: "digit", width: 28, height: 28 }));
  controls = new Controls($("controls"), () => state, change);

  const choose = (label: number) => {
    change({ digit: label });
    ($("ten").children[label] as HTMLElement).focus();
  };
  $("ten").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const n = classList.length;
    if (by) choose((state.digit + by + n) % n);
    else if (/^\d$/.test(event.key) && Number(event.key) < n) choose(Number(event.key));
    else return;
    event.preventDefault();
  });

  $("undo").addEventListener("click", () => pad.undo());
  $("clear").addEventListener("click", () => change({ strokes: [], meant: null }));
  $("another").addEventListener("click", () =>
    change({ strokes: [], meant: null, row: state.strokes.length ? state.row : (state.row + 1) % 100 }),
  );
  $("reset").addEventListener("click", () => {
    const { solver, steps, guidance, from, to } = defaults;
    change({ solver, steps, guidance, from, to });
  });
  select("meant").addEventListener("change", () => {
    follow = true;
    change({ meant: select("meant").value === "" ? null : Number(select("meant").value) });
  });
  for (const id of ["first", "second"]) select(id).addEventListener("change", () => change({ [id]: Number(select(id).value) }));
  const drag = (event: PointerEvent) => {
    const box = input("share").getBoundingClientRect();
    if (event.buttons) change({ share: Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) });
  };
  $("frames").addEventListener("pointerdown", (event) => {
    $("frames").setPointerCapture(event.pointerId);
    drag(event);
  });
  $("frames").addEventListener("pointermove", drag);
  input("share").addEventListener("input", () => change({ share: Number(input("share").value) }));
  input("time").addEventListener("input", () => {
    stop();
    state.time = Number(input("time").value);
    showTime();
  });
  input("time").addEventListener("change", () => void refresh());
  $("play").addEventListener("click", () => (playing ? stop() : play()));
  $("save-png").addEventListener("click", savePng);
  $("save-gif").addEventListener("click", saveGif);
  $("link").addEventListener("click", copyLink);
  addEventListener("hashchange", () => {
    if (location.hash === toAddress(state)) return;
    state = fromAddress(location.hash, defaults, description.classes);
    pad.show(state.strokes.map((stroke) => [...stroke]));
    change({});
  });
}

let playing = 0;

function play(): void {
  const from = state.time >= 1 ? 0 : state.time;
  const start = performance.now() - from * PLAY_MS;
  const frame = (now: number) => {
    state.time = Math.min(1, Math.max(0, (now - start) / PLAY_MS));
    showTime();
    if (state.time < 1) playing = requestAnimationFrame(frame);
    else stop();
  };
  playing = requestAnimationFrame(frame);
  $("play").textContent = "❚❚";
  $("play").ariaLabel = "Pause";
}

function stop(): void {
  cancelAnimationFrame(playing);
  playing = 0;
  $("play").textContent = "▶";
  $("play").ariaLabel = "Play";
  void refresh();
}

const name = () => (state.strokes.length ? "my-hand" : `seed-${state.seed}-hand-${state.row}`);

function savePng(): void {
  const columns = Math.min(5, images.length);
  const picture = sheet(images.map((image) => toImage(image, shape)), columns, 4);
  picture.toBlob((blob) => blob && save(blob, `${name()}.png`), "image/png");
}

function saveGif(): void {
  const frames = trace.states.map((image, i) =>
    sheet([toImage(image, shape), toImage(trace.predicted[i], shape)], 2, 6),
  );
  save(gif(frames, Math.max(20, Math.round(PLAY_MS / frames.length))), `${name()}-${state.digit}.gif`);
}

async function copyLink(): Promise<void> {
  history.replaceState(null, "", toAddress(state));
  try {
    await navigator.clipboard.writeText(location.href);
    $("status").textContent = "The link is copied. It shows this picture.";
  } catch {
    $("status").textContent = "The browser does not let this page copy; the link is in its address bar.";
  }
}

// --- start -----------------------------------------------------------------------------------------------------------

async function start(): Promise<void> {
  if (typeof WebAssembly !== "object") throw new Error("This browser has no WebAssembly, which this page computes with.");
  if (typeof DecompressionStream !== "function")
    throw new Error("This browser is too old for this page: it has no DecompressionStream (it is in all browsers since 2023).");
  const loaded = await client.call("load", new URL("./", location.href).href.split("#")[0]);
  description = loaded.description;
  shape = description.image_shape;
  const { sampler } = description;
  const labelled = description.classes > 0;
  const pick = (label: number) => (label < description.classes ? label : 0);
  defaults = {
    seed: 0, row: 0, strokes: [], meant: null, digit: pick(7), time: 1, first: pick(3), second: pick(8), share: 0.5,
    solver: asSolver(sampler.solver), steps: Math.min(50, sampler.steps),
    guidance: labelled ? sampler.guidance_scale : 1, from: sampler.guidance_interval[0], to: sampler.guidance_interval[1],
  };
  state = fromAddress(location.hash, defaults, Math.max(1, description.classes));
  plane = new Plane(canvas("plane"), loaded.cloud as Cloud);
  listen();
  pad.show(state.strokes.map((stroke) => [...stroke]));
  $("plane-caption").innerHTML =
    `The way of x<sub>t</sub> in two principal components, over ${loaded.cloud.points.length.toLocaleString("en")} ${loaded.cloud.source}.`;
  $("facts").textContent =
    `${(description.parameters / 1e6).toFixed(1)} million weights turn noise of ${description.latent_shape.join(" × ")} numbers into latents; a decoder turns those into ${shape[2]} × ${shape[1]} pixels.`;
  for (const id of ["another", "save-png", "save-gif", "link", "time", "play", "share"]) $<HTMLButtonElement>(id).disabled = false;
  showState();
  readyAt = performance.now();
  await refresh();
}

start().catch(fail);
