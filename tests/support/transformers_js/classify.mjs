// Reads {model, files, folder, or host and cache, dtype} as JSON, writes each file's scores by label.
import { readFileSync } from "node:fs";
import { env, pipeline } from "@huggingface/transformers";

const asked = JSON.parse(readFileSync(0, "utf-8"));
if (asked.host) {
  env.allowLocalModels = false;
  env.remoteHost = asked.host;
  env.cacheDir = asked.cache;
} else {
  env.allowRemoteModels = false;
  env.localModelPath = asked.folder;
}
const classify = await pipeline("image-classification", asked.model, asked.dtype ? { dtype: asked.dtype } : {});
const answers = [];
for (const file of asked.files) {
  const scores = await classify(file, { top_k: null });
  answers.push(Object.fromEntries(scores.map(({ label, score }) => [label, score])));
}
process.stdout.write(JSON.stringify(answers));
