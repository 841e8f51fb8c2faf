// The page: what goes in, what is asked of the server's API, and the sounds that come out. No library, no other server.

import { ask, server, useKey } from "./api.js";
import { Source } from "./source.js";
import { Take } from "./take.js";
import { $, all, complain, player, redraw, seconds } from "./view.js";

const MODES = {
  continue: {
    hint: "Goes on from a recording: three seconds are enough.",
    go: "Continue",
    noun: "Continuation",
  },
  generate: { hint: "Speech from nothing: a new voice each time.", go: "Generate", noun: "From nothing" },
  revoice: { hint: "The same words in another voice.", go: "Revoice", noun: "Revoiced" },
  speak: { hint: "Reads a text aloud.", go: "Speak", noun: "Spoken" },
  reconstruct: { hint: "The codec alone: into tokens and back.", go: "Reconstruct", noun: "Reconstruction" },
};
const MOST_SECONDS = 30; // that the slider offers

const form = $("#ask");
let running = null; // an AbortController while something is made

const mode = () => form.elements.mode.value;

/** What the form says, as parameters of the API. */
function parameters() {
  const query = new URLSearchParams();
  for (const field of all("[name]", form)) {
    if (["mode", "seed", "samples"].includes(field.name) || field.closest("[hidden]")) continue;
    const value = field.type === "checkbox" ? (field.checked ? "true" : "") : field.value.trim();
    if (value) query.set(field.name, value);
  }
  return query;
}

async function make(signal) {
  complain(null);
  const [way, files] = [mode(), {}];
  for (const [name, source] of Object.entries(sources)) {
    if (source.root.hidden) continue;
    await source.stop?.();
    if (source.file) files[name] = source.file;
  }
  if (way === "speak" && !form.elements.text.value.trim()) {
    form.elements.text.focus();
    return complain(new Error("First write what is to be said."));
  }
  if (!sources.audio.root.hidden && !files.audio) {
    $(".record", sources.audio.root).focus();
    return complain(new Error("First record something, choose a file, or take an example."));
  }
  player.unlock(server.sample_rate);
  const query = parameters();
  const drawn = way !== "reconstruct"; // by chance, from a seed on
  const first = Number(form.elements.seed.value);
  const count = drawn ? Number(form.elements.samples.value) : 1;
  const takes = Array.from({ length: count }, (_, i) => {
    const levels = query.has("codebooks") && `levels ${query.get("codebooks")}`;
    const details = [files.audio && `of ${sources.audio.name}`, files.voice && `by ${sources.voice.name}`, drawn && `seed ${first + i}`, levels];
    return new Take(MODES[way].noun, details.filter(Boolean).join(", "), `${way}-${drawn ? first + i : query.get("codebooks")}.wav`);
  });
  $("#empty").hidden = true;
  $("#takes").prepend(...takes.map((take) => take.root));
  const shares = takes.map(() => 0);
  const progress = $("#progress");
  const one = (take, i, live) => {
    const own = new URLSearchParams(query);
    if (drawn) own.set("seed", String(first + i));
    if (live) own.set("stream", "true");
    return take.make(`/v1/${way}?${own}`, files, live, signal, (share) => {
      shares[i] = share;
      progress.value = shares.reduce((sum, each) => sum + each) / count;
    });
  };
  busy(true);
  const results = [await settled(one(takes[0], 0, drawn))];
  // The others together: the server makes them in one batch.
  if (results[0].done) results.push(...(await Promise.all(takes.slice(1).map((take, i) => settled(one(take, i + 1, false))))));
  busy(false);
  for (const take of takes) if (!take.view.sound) take.remove();
  const wrong = results.find((each) => each.error);
  complain(wrong?.error);
  const made = takes.filter((take) => take.view.sound).length;
  $("#status").textContent = wrong ? "Stopped." : `Done: ${made === 1 ? "one sound" : `${made} sounds`}.`;
}

const settled = (promise) => promise.then(() => ({ done: true }), (error) => ({ error }));

function busy(yes) {
  $("#go").disabled = yes;
  const held = document.activeElement === $("#stop");
  $("#stop").hidden = !yes;
  if (held && !yes) $("#go").focus();
  $("#progress").hidden = !yes;
  $("#progress").removeAttribute("value");
  $("#status").textContent = yes ? "Making it …" : "";
  $("#takes").setAttribute("aria-busy", String(yes));
}

// --- The form ------------------------------------------------------------------------------------------------------

const sources = {
  audio: new Source("audio", "Recording"),
  voice: new Source("voice", "Voice to use (none: any)"),
};

function arrange() {
  const way = mode();
  for (const each of all("[data-in]")) each.hidden = !each.dataset.in.split(" ").includes(way);
  $("#hint").textContent = MODES[way].hint;
  $("#go").textContent = MODES[way].go;
  $("output[for=seconds]").textContent = seconds(Number(form.elements.seconds.value));
  const levels = Number($("#codebooks").value);
  $("output[for=codebooks]").textContent = server.bitrate ? `${levels}, ${(levels * server.bitrate) / server.codebooks / 1000} kbit/s` : levels;
}

async function start() {
  const { models } = await (await ask("/v1/models")).json();
  Object.assign(server, models[0]);
  $("#model").textContent = `model: ${server.name}`;
  $("#speaks").hidden = !server.speaks;
  form.elements.seconds.max = Math.min(MOST_SECONDS, server.max_seconds);
  const { decoder, temperature, samples } = form.elements;
  $("#codebooks").max = $("#codebooks").value = $("#levels").max = server.codebooks;
  $("#levels").placeholder = server.own_codebooks;
  decoder.length = 1;
  for (const name of server.decoders) decoder.add(new Option(name));
  const warmth = (name) => server.sampling?.[name]?.temperature;
  temperature.placeholder = ["semantic", "coarse", "fine"].map(warmth).filter((each) => each !== undefined).join(",");
  for (const option of [...samples.options]) option.disabled = Number(option.value) > server.max_samples;
  const examples = await (await ask("/v1/examples")).json();
  for (const source of Object.values(sources)) source.offer(examples);
  arrange();
}

form.addEventListener("input", arrange);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return; // a second click while a recording is still being stopped
  running = new AbortController();
  make(running.signal).catch(complain).finally(() => (running = null));
});
$("#stop").addEventListener("click", () => {
  running?.abort();
  player.stop();
});
$("#dice").addEventListener("click", () => {
  form.elements.seed.value = crypto.getRandomValues(new Uint32Array(1))[0] % 10000;
});
$("#unlock").addEventListener("click", () => {
  useKey($("#key").value.trim());
  start().then(() => complain(null), complain);
});
// A file dropped beside the fields would otherwise replace the page.
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

arrange();
start().catch(complain);
