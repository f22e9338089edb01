// How a picture was made: read from a PNG of ours, turned into settings, and into programs.
//
// The recipe is JSON in the text chunk `sd35` (see docs/guides/web.md). Servers leave the words out of it
// unless told otherwise; the gallery has them then, and finds the picture by its SHA-256.

import { get, parse, ROOT, write } from "./api.js";

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const KEYWORD = "sd35";

/** The settings of a dropped file; null where neither the file nor the gallery knows. */
export async function settingsOf(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const known = await fromGallery(bytes);
  if (known) return known;
  const recipe = recipeIn(bytes);
  return recipe && fromRecipe(recipe);
}

/** The recipe inside a PNG file, null where there is none. https://www.w3.org/TR/png-3/#11iTXt */
export function recipeIn(bytes) {
  if (!SIGNATURE.every((byte, index) => bytes[index] === byte)) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (type === "iTXt") {
      const text = ourText(bytes.subarray(at + 8, at + 8 + length));
      if (text !== null) return parse(text);
    }
    at += 12 + length;
  }
  return null;
}

/** keyword 0, compression flag, compression method, language 0, translated keyword 0, text in UTF-8 */
function ourText(chunk) {
  const keywordEnd = chunk.indexOf(0);
  if (new TextDecoder().decode(chunk.subarray(0, keywordEnd)) !== KEYWORD || chunk[keywordEnd + 1] !== 0) return null;
  const languageEnd = chunk.indexOf(0, keywordEnd + 3);
  const translatedEnd = chunk.indexOf(0, languageEnd + 1);
  return new TextDecoder().decode(chunk.subarray(translatedEnd + 1));
}

function fromRecipe(recipe) {
  const { width, height, num_inference_steps, guidance_scale } = recipe.settings;
  return {
    prompt: recipe.prompt?.clip_l ?? null,
    negative_prompt: recipe.negative_prompt?.clip_l ?? null,
    seed: String(recipe.seed),
    model: null,
    n: 1,
    image: recipe.image_sha256 ?? null,
    strength: recipe.strength ?? null,
    ...{ width, height, num_inference_steps, guidance_scale },
  };
}

/** Browsers hash only on pages that came safely: from this machine, or by HTTPS. */
async function fromGallery(bytes) {
  if (!crypto.subtle) return null;
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const sha256 = [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const [one] = (await get(`jobs?limit=1&sha256=${sha256}`)).data;
  if (!one) return null;
  return settingsFrom(one, one.images.find((image) => image.sha256 === sha256).seed);
}

/** The settings that give this picture of a job again, alone. */
export function settingsFrom(one, seed) {
  const { prompt, negative_prompt, model, width, height, num_inference_steps, guidance_scale, image, strength } = one.request;
  return { prompt, negative_prompt, model, width, height, num_inference_steps, guidance_scale, image, strength, seed: String(seed), n: 1 };
}

/** What draws this picture from a shell. */
export function asCurl(settings) {
  if (settings.image) return asForm(settings);
  const body = write({ ...simple(settings), ...extra(settings) }, 2).replaceAll("'", "'\\''");
  return [
    `curl -s ${new URL("v1/images/generations", ROOT)} \\`,
    `  -H "Authorization: Bearer $SD35_KEY" -H "Content-Type: application/json" \\`,
    `  -d '${body}' \\`,
    `  | jq -r '.data[0].b64_json' | base64 -d > picture.png`,
  ].join("\n");
}

/** The same where it begins with a picture, which the reader has to put beside it. */
function asForm(settings) {
  const fields = Object.entries({ ...simple(settings), ...extra(settings) });
  const quoted = (value) => `'${String(value).replaceAll("'", "'\\''")}'`;
  return [
    `curl -s ${new URL("v1/images/edits", ROOT)} \\`,
    `  -H "Authorization: Bearer $SD35_KEY" -F image=@start.png \\`,
    ...fields.map(([name, value]) => `  --form-string ${name}=${quoted(value)} \\`),
    `  | jq -r '.data[0].b64_json' | base64 -d > picture.png`,
  ].join("\n");
}

/** What draws this picture from Python, with OpenAI's package. */
export function asPython(settings) {
  return `import base64
import os

from openai import OpenAI

client = OpenAI(base_url=${write(new URL("v1", ROOT))}, api_key=os.environ.get("SD35_KEY", "none"))
answer = client.images.${settings.image ? `edit(\n    image=open("start.png", "rb"),` : "generate("}
${keywords(simple(settings), "    ")}
    extra_body={
${entries(extra(settings), "        ")}
    },
)
with open("picture.png", "wb") as file:
    file.write(base64.b64decode(answer.data[0].b64_json))
`;
}

const simple = ({ model, prompt, width, height }) => ({ model, prompt, size: `${width}x${height}` });

const extra = ({ negative_prompt, num_inference_steps, guidance_scale, seed, image, strength }) => ({
  negative_prompt,
  num_inference_steps,
  guidance_scale,
  seed,
  ...(image && { strength }),
});

/** JSON's strings and numbers are Python's too. */
const keywords = (values, indent) => lines(values, (name) => `${indent}${name}=`);
const entries = (values, indent) => lines(values, (name) => `${indent}"${name}": `);
const lines = (values, begin) =>
  Object.entries(values).map(([name, value]) => `${begin(name)}${name === "seed" ? value : write(value)},`).join("\n");
