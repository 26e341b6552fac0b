// Pictures as sqzoo.predict prepares them: resized as Pillow does it, which no browser's own does, and the centre taken.

const LARGEST = 1024; // of a picture whose short side is longer the browser makes this first, or a phone's would take a second

/** Return an image, video, canvas or bitmap as a canvas, on white where it is transparent. */
export function drawn(source) {
  const width = source.videoWidth || source.width;
  const height = source.videoHeight || source.height;
  const scale = Math.min(1, LARGEST / Math.min(width, height));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** The square of a picture that a network sees: left, top and side, in its pixels. */
export function seen(width, height, resize, side) {
  const size = (Math.min(width, height) * side) / resize;
  return [(width - size) / 2, (height - size) / 2, size];
}

/** Turn width x height RGBA pixels into the central side x side RGB pixels of the picture with a short side of `resize`. */
export function resized(rgba, width, height, resize, side) {
  const short = Math.min(width, height);
  const [across, down] = [width, height].map((length) => taps(length, Math.floor((resize * length) / short), side));
  const rows = new Uint8ClampedArray(height * side * 3); // Pillow rounds to whole levels after each of the two passes
  for (let y = 0; y < height; y++)
    for (let x = 0; x < side; x++)
      for (let c = 0; c < 3; c++) {
        const { first, shares } = across[x];
        let sum = 0;
        for (let i = 0; i < shares.length; i++) sum += shares[i] * rgba[(y * width + first + i) * 4 + c];
        rows[(y * side + x) * 3 + c] = Math.floor(sum + 0.5);
      }
  const pixels = new Uint8ClampedArray(side * side * 3);
  for (let y = 0; y < side; y++)
    for (let x = 0; x < side * 3; x++) {
      const { first, shares } = down[y];
      let sum = 0;
      for (let i = 0; i < shares.length; i++) sum += shares[i] * rows[(first + i) * side * 3 + x];
      pixels[y * side * 3 + x] = Math.floor(sum + 0.5);
    }
  return new Uint8Array(pixels.buffer);
}

// The triangle filter, widened by the factor of shrinking, so that every pixel counts; of the `to` results the central
// `kept`, where a half is rounded to the even number, as Python does.
function taps(from, to, kept) {
  const scale = from / to;
  const reach = Math.max(scale, 1);
  const half = (to - kept) / 2;
  const low = half % 1 ? 2 * Math.round(half / 2) : half;
  return Array.from({ length: kept }, (_, x) => {
    const centre = (low + x + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - reach + 0.5));
    const end = Math.min(from, Math.floor(centre + reach + 0.5));
    const raw = Array.from({ length: end - first }, (_, i) => Math.max(0, 1 - Math.abs((first + i - centre + 0.5) / reach)));
    const total = raw.reduce((a, b) => a + b, 0);
    return { first, shares: Float64Array.from(raw, (w) => w / total) };
  });
}
