// Pictures as sqzoo.predict prepares them: the central square, shrunk as Pillow shrinks, which no browser's own does.

const LARGEST = 1024; // of a bigger square the browser makes this first, or a phone's photo would take a second

/** Return the central square of an image, video or bitmap as a canvas. */
export function centralSquare(source) {
  const width = source.videoWidth || source.width;
  const height = source.videoHeight || source.height;
  const side = Math.min(width, height);
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = Math.min(side, LARGEST);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  const [left, top] = [Math.floor((width - side) / 2), Math.floor((height - side) / 2)];
  context.drawImage(source, left, top, side, side, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** Shrink or grow a square of `from` x `from` RGBA pixels to `to` x `to` RGB pixels. */
export function resized(rgba, from, to) {
  const taps = weights(from, to);
  const rows = new Uint8ClampedArray(from * to * 3); // Pillow rounds to whole levels after each of the two passes
  for (let y = 0; y < from; y++)
    for (let x = 0; x < to; x++)
      for (let c = 0; c < 3; c++) {
        const { first, shares } = taps[x];
        let sum = 0;
        for (let i = 0; i < shares.length; i++) sum += shares[i] * rgba[(y * from + first + i) * 4 + c];
        rows[(y * to + x) * 3 + c] = Math.floor(sum + 0.5);
      }
  const pixels = new Uint8ClampedArray(to * to * 3);
  for (let y = 0; y < to; y++)
    for (let x = 0; x < to * 3; x++) {
      const { first, shares } = taps[y];
      let sum = 0;
      for (let i = 0; i < shares.length; i++) sum += shares[i] * rows[(first + i) * to * 3 + x];
      pixels[y * to * 3 + x] = Math.floor(sum + 0.5);
    }
  return new Uint8Array(pixels.buffer);
}

// The triangle filter, widened by the factor of shrinking, so that every pixel counts.
function weights(from, to) {
  const scale = from / to;
  const reach = Math.max(scale, 1);
  return Array.from({ length: to }, (_, x) => {
    const centre = (x + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - reach + 0.5));
    const end = Math.min(from, Math.floor(centre + reach + 0.5));
    const raw = Array.from({ length: end - first }, (_, i) => Math.max(0, 1 - Math.abs((first + i - centre + 0.5) / reach)));
    const total = raw.reduce((a, b) => a + b, 0);
    return { first, shares: Float64Array.from(raw, (w) => w / total) };
  });
}
