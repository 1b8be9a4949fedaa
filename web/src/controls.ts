// The settings: a control each, and two sentences on why it is there.

import { SOLVERS, type Solver } from "./flow";
import { LIMITS, type State } from "./state";

type Slider = "guidance" | "from" | "to" | "steps" | "row";

const SLIDERS: { name: string; parts: { key: Slider; label: string; step: number }[]; why: string }[] = [
  {
    name: "Hand",
    parts: [{ key: "row", label: "Hand, 0 to 99", step: 1 }],
    why: "Each hand is one noise of the seed. Followed with ten labels, one noise becomes ten digits in one handwriting.",
  },
  {
    name: "Guidance",
    parts: [{ key: "guidance", label: "Guidance scale", step: 0.1 }],
    why: "At 1 the model draws as it was trained. Above, the label is exaggerated: digits become clearer and less varied.",
  },
  {
    name: "Guide from … to",
    parts: [
      { key: "from", label: "Guide from this time", step: 0.01 },
      { key: "to", label: "Guide to this time", step: 0.01 },
    ],
    why: "Guidance costs two evaluations in place of one, so it acts at these times alone. Too early it makes all hands alike, too late it changes nothing.",
  },
  {
    name: "Steps",
    parts: [{ key: "steps", label: "Steps", step: 1 }],
    why: "The way from noise to digit is cut into so many steps. More follow the curve closely and take longer.",
  },
];
const SEED_WHY = "It names the noise that pictures start from. The same seed gives the same pictures, here and in Python.";
const SOLVER_WHY =
  "Euler evaluates the model once a step, midpoint and Heun twice, rk4 four times. A higher order errs less, so it needs fewer steps.";

export class Controls {
  private update: (() => void)[] = [];

  constructor(parent: HTMLElement, state: () => State, change: (values: Partial<State>) => void) {
    const seed = document.createElement("input");
    Object.assign(seed, { type: "number", min: "0", max: String(LIMITS.seed[1]), step: "1", id: "seed" });
    seed.addEventListener("change", () => {
      if (seed.checkValidity() && seed.value) change({ seed: Number(seed.value), strokes: [], meant: null });
      else seed.value = String(state().seed);
    });
    this.update.push(() => (seed.value = String(state().seed)));
    const draw = document.createElement("button");
    Object.assign(draw, { type: "button", textContent: "New", id: "new-seed", ariaLabel: "New seed" });
    draw.addEventListener("click", () =>
      change({ seed: crypto.getRandomValues(new Uint32Array(1))[0] % 10_000, strokes: [], meant: null }),
    );
    const row = element("div", "row");
    row.append(seed, draw);
    parent.append(control("Seed", null, [row], SEED_WHY, [seed]));

    for (const { name, parts, why } of SLIDERS) {
      const value = document.createElement("output");
      const inputs = parts.map(({ key, label, step }) => {
        const [least, most] = LIMITS[key];
        const input = document.createElement("input");
        Object.assign(input, { type: "range", min: String(least), max: String(most), step: String(step), id: key });
        input.setAttribute("aria-label", label);
        input.addEventListener("input", () => change(changed(key, Number(input.value), state())));
        this.update.push(() => (input.value = String(state()[key])));
        return input;
      });
      this.update.push(() => (value.textContent = parts.map(({ key }) => shown(key, state())).join(" … ")));
      parent.append(control(name, value, inputs, why, inputs));
    }

    const solver = document.createElement("select");
    solver.id = "solver";
    for (const name of SOLVERS) solver.add(new Option(name));
    solver.addEventListener("change", () => change({ solver: solver.value as Solver }));
    this.update.push(() => (solver.value = state().solver));
    parent.append(control("Solver", null, [solver], SOLVER_WHY, [solver]));
  }

  show(): void {
    for (const update of this.update) update();
  }
}

/** A hand chosen takes the place of a drawing; the interval's ends push each other. */
function changed(key: Slider, value: number, s: State): Partial<State> {
  if (key === "row") return { row: value, strokes: [], meant: null };
  if (key === "from") return { from: value, to: Math.max(value, s.to) };
  if (key === "to") return { to: value, from: Math.min(value, s.from) };
  return { [key]: value };
}

function shown(key: Slider, s: State): string {
  if (key === "row" && s.strokes.length) return "yours";
  return key === "row" || key === "steps" ? String(s[key]) : s[key].toFixed(key === "guidance" ? 1 : 2);
}

function element(tag: string, className: string, text = ""): HTMLElement {
  return Object.assign(document.createElement(tag), { className, textContent: text });
}

let count = 0;

function control(
  name: string,
  value: HTMLElement | null,
  inputs: HTMLElement[],
  why: string,
  described: HTMLElement[],
): HTMLElement {
  const block = element("div", "control");
  const head = element("div", "name");
  head.append(element("span", "", name), ...(value ? [value] : []));
  const text = element("p", "why", why);
  text.id = `why-${++count}`;
  for (const input of described) {
    input.setAttribute("aria-describedby", text.id);
    if (!input.hasAttribute("aria-label")) input.setAttribute("aria-label", name);
  }
  block.append(head, ...inputs, text);
  return block;
}
