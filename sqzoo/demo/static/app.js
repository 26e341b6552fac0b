// The page: a picture in by file, drop, paste or camera, an answer out. Everything runs here; the server only hands files out.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { drawn, resized, seen } from "./picture.js";

const $ = (id) => document.getElementById(id);
const sessions = new Map();
let models = [];
let shown = null; // { canvas, model, scores, maps, size } of the last answer
let stream = null;

ort.env.wasm.numThreads = 1; // the networks take some ten milliseconds; threads would take longer to start
const engine = unpacked("ort-wasm-simd-threaded.wasm.gz").then((bytes) => (ort.env.wasm.wasmBinary = bytes));
const MANY = 24; // answers that are kept, each with its picture
const answers = [];

/** Fetch a gzipped file and unpack it, unless the host has had the browser do so. */
async function unpacked(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
  const bytes = await answer.arrayBuffer();
  const [first, second] = new Uint8Array(bytes, 0, 2);
  if (first !== 0x1f || second !== 0x8b) return bytes;
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

function tell(problem) {
  $("problem").textContent = problem;
}

const percent = (p) => `${(100 * p).toFixed(1)} %`;

/** Load the chosen network, once, and let it see an empty picture, since all code is slow the first time. */
async function session(model) {
  if (!sessions.has(model.file)) {
    $("state").textContent = `Loading ${model.tag}, ${(model.bytes / 1e6).toFixed(1)} MB …`;
    const [graph] = await Promise.all([unpacked(model.file), engine]);
    const made = await ort.InferenceSession.create(new Uint8Array(graph), { executionProviders: ["wasm"] });
    await run(made, model, resized(new Uint8ClampedArray(4 * 300 ** 2), 300, 300, model.resize, model.pixels));
    sessions.set(model.file, made);
  }
  $("state").textContent = `${model.tag} is ready; it knows ${model.labels.length} classes.`;
  $("samples").hidden = $("samples-title").hidden = !model.labels.includes("cat"); // they are for CIFAR-10's classes
  const more = model.labels.length - 30;
  $("known").textContent = `${model.labels.slice(0, 30).join(", ")}${more > 0 ? ` and ${more} more` : ""}.`;
  return sessions.get(model.file);
}

async function run(made, model, pixels) {
  const input = new ort.Tensor("uint8", pixels, [1, model.pixels, model.pixels, 3]);
  const began = performance.now();
  const found = await made.run({ [made.inputNames[0]]: input });
  const network = performance.measure("network", { start: began }).duration;
  const [logits, maps] = made.outputNames.map((name) => found[name]);
  return { ...judged(logits.data, model), maps: maps.data, size: maps.dims.slice(2), network };
}

/** Probabilities, and whether they are those of none of the classes: sqzoo.uncertainty's score. */
function judged(logits, { threshold = -Infinity }) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const total = powers.reduce((sum, power) => sum + power);
  const scores = powers.map((power) => power / total);
  return { scores, unsure: -scores.reduce((sum, p) => sum + (p * (1 - p)) ** 0.1, 0) < threshold };
}

let last = Promise.resolve();
/** Classify a picture (bitmap, video or canvas) by the chosen network; calls wait for each other. */
function classify(picture, keep = !stream) {
  last = last.then(async () => {
    const model = models[$("tag").selectedIndex];
    const made = await session(model);
    const began = performance.now();
    const canvas = drawn(picture);
    const { width, height } = canvas;
    const rgba = canvas.getContext("2d").getImageData(0, 0, width, height).data;
    const pixels = resized(rgba, width, height, model.resize, model.pixels);
    const prepared = performance.now() - began;
    const found = await run(made, model, pixels);
    const label = shown?.model === model && stream ? shown.label : null; // with the camera the chosen class stays
    shown = { canvas, model, pixels, prepared, label, ...found };
    show();
    if (keep) remember();
    performance.measure("answer", { start: began });
  }).catch((error) => {
    $("state").textContent = "";
    tell(`The network could not run here (${error.message ?? error}); reload the page, or try another browser.`);
  });
  return last;
}

function show() {
  const { canvas, model, scores, unsure, prepared, network } = shown;
  const order = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, 10);
  tell("");
  $("answer").hidden = false;
  const best = `${model.labels[order[0]]}, ${percent(scores[order[0]])}`;
  const verdict = unsure ? `None of the ${scores.length} classes, perhaps; most like ${best}` : best;
  $("verdict").textContent = verdict;
  // Spoken from a place that is always there, since what was hidden is not announced; by the camera when it changes.
  if (!stream || model.labels[order[0]] !== $("spoken").dataset.label) $("spoken").textContent = verdict;
  $("spoken").dataset.label = model.labels[order[0]];
  $("time").textContent =
    `${network.toFixed(1)} ms for the network, ${prepared.toFixed(1)} ms to prepare the picture, on this device.`;
  const view = $("picture").getContext("2d");
  view.imageSmoothingQuality = "high";
  const [left, top, size] = seen(canvas.width, canvas.height, model.resize, model.pixels);
  view.drawImage(canvas, left, top, size, size, 0, 0, 448, 448);
  showSeen(model);
  showBars(order);
  showHeat(shown.label ?? order[0]);
  mark();
}

/** Add the answer to the strip of pictures so far, where a click shows it again. */
function remember() {
  const answer = shown;
  const button = document.createElement("button");
  const small = document.createElement("canvas");
  const name = document.createElement("span");
  button.type = "button";
  small.width = small.height = 144;
  small.getContext("2d").drawImage($("picture"), 0, 0, 144, 144);
  name.textContent = answer.unsure ? "none?" : answer.model.labels[answer.scores.indexOf(Math.max(...answer.scores))];
  button.append(small, name);
  button.addEventListener("click", () => {
    stopCamera();
    shown = answer;
    show();
  });
  const item = document.createElement("li");
  item.append(button);
  answers.push({ answer, item });
  if (answers.length > MANY) answers.shift().item.remove();
  if (answers.length > 1) $("answers").replaceChildren(...answers.map((one) => one.item));
  mark();
}

function mark() {
  for (const { answer, item } of answers) item.firstChild.setAttribute("aria-pressed", String(answer === shown));
}

function showSeen({ pixels: side }) {
  const image = new ImageData(side, side);
  for (let i = 0; i < side * side; i++) {
    image.data.set(shown.pixels.subarray(3 * i, 3 * i + 3), 4 * i);
    image.data[4 * i + 3] = 255;
  }
  $("seen").width = $("seen").height = side;
  $("seen").getContext("2d").putImageData(image, 0, 0);
  $("seen-note").textContent = `What the network gets: ${side} × ${side} pixels.`;
}

function showBars(order) {
  const list = $("bars");
  while (list.children.length > order.length) list.lastChild.remove();
  while (list.children.length < order.length) list.append(bar());
  order.forEach((label, i) => {
    const button = list.children[i].firstChild;
    const score = shown.scores[label];
    button.value = label;
    button.querySelector(".name").textContent = shown.model.labels[label];
    button.querySelector(".fill").style.width = `${100 * score}%`;
    button.querySelector(".percent").textContent = percent(score);
  });
}

function bar() {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  const parts = ["name", "track", "percent"].map((name) => {
    const part = document.createElement("span");
    part.className = name;
    return part;
  });
  const fill = document.createElement("span");
  fill.className = "fill";
  fill.style.display = "block";
  parts[1].append(fill);
  button.append(...parts);
  button.addEventListener("click", () => {
    shown.label = Number(button.value);
    showHeat(shown.label);
  });
  item.append(button);
  return item;
}

/** Lay the class's map over the picture: each cell where the network saw its middle, strong evidence red. */
function showHeat(label) {
  const { model, maps, size: [height, width] } = shown;
  for (const { firstChild: button } of $("bars").children)
    button.setAttribute("aria-pressed", String(Number(button.value) === label));
  $("heat-class").textContent = model.labels[label];
  $("heat").hidden = !$("show-heat").checked;
  const cells = maps.subarray(label * height * width, (label + 1) * height * width);
  const largest = Math.max(...maps, 1e-6); // over all classes: a class without evidence stays without colour
  const small = new ImageData(width + 2, height + 2); // the outer cells once more, or the map would end in a line
  for (let y = 0; y < height + 2; y++)
    for (let x = 0; x < width + 2; x++) {
      const [row, column] = [Math.min(Math.max(y - 1, 0), height - 1), Math.min(Math.max(x - 1, 0), width - 1)];
      const share = Math.max(0, cells[row * width + column] / largest);
      small.data.set([225, 40, 0, 190 * share], 4 * (y * (width + 2) + x));
    }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width + 2, height + 2];
  canvas.getContext("2d").putImageData(small, 0, 0);
  const view = $("heat").getContext("2d");
  view.clearRect(0, 0, 448, 448);
  view.imageSmoothingQuality = "high";
  const [wide, high] = [width + 2, height + 2].map((n) => (448 * model.step * n) / model.side);
  view.drawImage(canvas, 224 - wide / 2, 224 - high / 2, wide, high);
}

async function take(files) {
  for (const file of files) await takeOne(file);
}

async function takeOne(file) {
  stopCamera();
  const began = performance.now();
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    tell(`${file.name || "This file"} is no picture that this browser can read; choose a JPEG, PNG or WebP file.`);
    return;
  }
  performance.measure("decode", { start: began });
  await classify(bitmap);
  bitmap.close();
}

async function startCamera() {
  const video = document.createElement("video");
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    video.muted = video.playsInline = true;
    video.srcObject = stream;
    await video.play();
  } catch (error) {
    stopCamera();
    tell(`The camera cannot be used (${error.message ?? error}); allow it for this page, at localhost or by https.`);
    return;
  }
  $("camera").textContent = "Stop the camera";
  $("camera").setAttribute("aria-pressed", "true");
  const current = stream;
  while (stream === current) {
    await classify(video);
    await new Promise((resolve) => setTimeout(resolve, 150));
  }
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("camera").textContent = "Use the camera";
  $("camera").setAttribute("aria-pressed", "false");
}

$("file").addEventListener("change", () => {
  take([...$("file").files]);
  $("file").value = ""; // the same file may be chosen again
});
$("camera").addEventListener("click", () => (stream ? stopCamera() : startCamera()));
$("tag").addEventListener("change", () => {
  const canvas = shown?.canvas;
  if (canvas) classify(canvas, false);
  else last = last.then(() => session(models[$("tag").selectedIndex]));
});
$("show-heat").addEventListener("change", () => ($("heat").hidden = !$("show-heat").checked));
document.addEventListener("paste", (event) => take([...event.clipboardData.files]));
$("samples").addEventListener("click", async ({ target }) => {
  const button = target.closest("button");
  if (button) take([await (await fetch(button.value)).blob()]);
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", kind === "dragenter" || kind === "dragover");
  });
document.addEventListener("drop", (event) => {
  const files = [...event.dataTransfer.files];
  if (files.length) take(files);
  else tell("That was a link, not a file, and this page opens no other address; save the picture and drop the file.");
});

try {
  models = await (await fetch("models.json")).json();
  $("tag").replaceChildren(...models.map((model) => new Option(model.tag)));
  await session(models[0]);
  $("tag").disabled = false;
} catch (error) {
  $("state").textContent = "";
  tell(`The network could not be loaded (${error.message ?? error}); reload the page, or try another browser.`);
}
