// The draws of lfm.random, bit for bit: (seed, stream, index) → SHA-256 → Philox4x64-10 → NumPy's float32 normals.

const MASK = (1n << 64n) - 1n;

/** Standard normal draws of `lfm.random.normal(seed, stream, index, [count])`. */
export function normal(seed: number | bigint, stream: string, index: number, count: number): Float32Array {
  const digest = sha256(new TextEncoder().encode(`${seed}/${stream}/${index}`));
  const view = new DataView(digest.buffer);
  const next = words(view.getBigUint64(0, true), view.getBigUint64(8, true));
  return Float32Array.from({ length: count }, () => standardNormal(next));
}

/** The 32-bit words of a Philox4x64-10 generator (Salmon et al. 2011), low half of each 64-bit word first. */
function words(key0: bigint, key1: bigint): () => number {
  let counter = 0n;
  let buffer: number[] = [];
  return () => {
    if (!buffer.length) {
      counter += 1n;
      buffer = philox(counter, key0, key1).flatMap((word) => [Number(word & 0xffffffffn), Number(word >> 32n)]);
    }
    return buffer.shift()!;
  };
}

function philox(counter: bigint, key0: bigint, key1: bigint): bigint[] {
  let [c0, c1, c2, c3] = [counter, 0n, 0n, 0n];
  for (let round = 0; round < 10; round++) {
    const p0 = 0xd2e7470ee14c6c93n * c0;
    const p1 = 0xca5a826395121157n * c2;
    [c0, c1, c2, c3] = [(p1 >> 64n) ^ c1 ^ key0, p1 & MASK, (p0 >> 64n) ^ c3 ^ key1, p0 & MASK];
    key0 = (key0 + 0x9e3779b97f4a7c15n) & MASK;
    key1 = (key1 + 0xbb67ae8584caa73bn) & MASK;
  }
  return [c0, c1, c2, c3];
}

// The ziggurat of 256 layers (Marsaglia & Tsang 2000), with the constants of NumPy.
const TAIL = 3.6541528853610088;
const AREA = 0.00492867323399;
const [LIMIT, WIDTH, HEIGHT] = ziggurat();

function ziggurat(): [Uint32Array, Float32Array, Float32Array] {
  const [limit, width, height] = [new Uint32Array(256), new Float32Array(256), new Float32Array(256)];
  const density = (x: number) => Math.exp((-x * x) / 2);
  const scale = 2 ** 23;
  let x = TAIL;
  const base = AREA / density(x);
  limit[0] = (x / base) * scale;
  width[0] = base / scale;
  width[255] = x / scale;
  height[0] = 1;
  height[255] = density(x);
  for (let i = 254; i > 0; i--) {
    const outer = x;
    x = Math.sqrt(-2 * Math.log(AREA / x + density(x)));
    limit[i + 1] = (x / outer) * scale;
    height[i] = density(x);
    width[i] = x / scale;
  }
  return [limit, width, height];
}

function standardNormal(next: () => number): number {
  const f = Math.fround;
  const uniform = () => (next() >>> 8) / 2 ** 24;
  for (;;) {
    const word = next();
    const layer = word & 0xff;
    const magnitude = (word >>> 9) & 0x7fffff;
    const x = f(magnitude * WIDTH[layer]) * ((word >>> 8) & 1 ? -1 : 1);
    if (magnitude < LIMIT[layer]) return x;
    if (layer > 0) {
      if (f(f(f(HEIGHT[layer - 1] - HEIGHT[layer]) * uniform()) + HEIGHT[layer]) < Math.exp(-0.5 * x * x)) return x;
      continue;
    }
    for (;;) {
      const beyond = f(-f(1 / TAIL) * f(Math.log1p(-uniform())));
      const y = f(-Math.log1p(-uniform()));
      if (y + y > beyond * beyond) return (magnitude >>> 8) & 1 ? -f(f(TAIL) + beyond) : f(f(TAIL) + beyond);
    }
  }
}

/** SHA-256 (FIPS 180-4); the browser's own is not there on pages without TLS. */
export function sha256(message: Uint8Array): Uint8Array {
  const size = Math.ceil((message.length + 9) / 64) * 64;
  const padded = new Uint8Array(size);
  padded.set(message);
  padded[message.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(size - 4, message.length * 8);
  const hash = Uint32Array.from(primes(8), (p) => fraction(Math.sqrt(p)));
  const constants = Uint32Array.from(primes(64), (p) => fraction(Math.cbrt(p)));
  const turn = (x: number, n: number) => (x >>> n) | (x << (32 - n));
  const w = new Uint32Array(64);
  for (let block = 0; block < size; block += 64) {
    for (let i = 0; i < 16; i++) w[i] = view.getUint32(block + 4 * i);
    for (let i = 16; i < 64; i++) {
      const s0 = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ (w[i - 15] >>> 3);
      const s1 = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ (w[i - 2] >>> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    let [a, b, c, d, e, f, g, h] = hash;
    for (let i = 0; i < 64; i++) {
      const s1 = turn(e, 6) ^ turn(e, 11) ^ turn(e, 25);
      const first = (h + s1 + ((e & f) ^ (~e & g)) + constants[i] + w[i]) | 0;
      const s0 = turn(a, 2) ^ turn(a, 13) ^ turn(a, 22);
      const second = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + first) | 0, c, b, a, (first + second) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((value, i) => (hash[i] += value));
  }
  const digest = new DataView(new ArrayBuffer(32));
  hash.forEach((value, i) => digest.setUint32(4 * i, value));
  return new Uint8Array(digest.buffer);
}

const fraction = (x: number) => (x - Math.floor(x)) * 2 ** 32;

function primes(count: number): number[] {
  const found: number[] = [];
  for (let n = 2; found.length < count; n++) if (found.every((p) => n % p)) found.push(n);
  return found;
}
