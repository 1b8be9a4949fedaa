// Pixels onto canvases and into files.

import { GIFEncoder, quantize, applyPalette } from "gifenc";

export type Shape = [channels: number, height: number, width: number];

/** Pixels channel by channel, as the model gives them → as a canvas takes them. */
export function toImage(pixels: Uint8Array, [channels, height, width]: Shape): ImageData {
  const image = new ImageData(width, height);
  const size = height * width;
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[(channels === 1 ? 0 : c * size) + i];
    image.data[4 * i + 3] = 255;
  }
  return image;
}

export function show(canvas: HTMLCanvasElement, pixels: Uint8Array, shape: Shape): void {
  [canvas.height, canvas.width] = [shape[1], shape[2]];
  canvas.getContext("2d", { willReadFrequently: true })!.putImageData(toImage(pixels, shape), 0, 0);
}

/** Pictures side by side in rows of `columns`, enlarged, on black. */
export function sheet(images: ImageData[], columns: number, zoom: number): HTMLCanvasElement {
  const [width, height] = [images[0].width, images[0].height];
  const canvas = document.createElement("canvas");
  canvas.width = columns * (width + 2) * zoom;
  canvas.height = Math.ceil(images.length / columns) * (height + 2) * zoom;
  const context = canvas.getContext("2d", { willReadFrequently: true })!;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = false;
  const one = document.createElement("canvas");
  [one.width, one.height] = [width, height];
  images.forEach((image, i) => {
    one.getContext("2d")!.putImageData(image, 0, 0);
    const [x, y] = [i % columns, Math.floor(i / columns)];
    context.drawImage(one, (x * (width + 2) + 1) * zoom, (y * (height + 2) + 1) * zoom, width * zoom, height * zoom);
  });
  return canvas;
}

/** A GIF that runs for ever; the last frame stays for a second and a half. */
export function gif(frames: HTMLCanvasElement[], delay: number): Blob {
  const encoder = GIFEncoder();
  frames.forEach((frame, i) => {
    const { width, height } = frame;
    const pixels = frame.getContext("2d")!.getImageData(0, 0, width, height).data;
    const palette = quantize(pixels, 64);
    const last = i === frames.length - 1;
    encoder.writeFrame(applyPalette(pixels, palette), width, height, { palette, delay: last ? 1500 : delay });
  });
  encoder.finish();
  return new Blob([encoder.bytes() as BlobPart], { type: "image/gif" });
}

export function save(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
