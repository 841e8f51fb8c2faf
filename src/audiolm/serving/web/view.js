// A sound on the page: its button, its picture, its cursor, and what is known of its watermark.

import { ask, fileForm, server } from "./api.js";
import { Picture } from "./picture.js";
import { Player } from "./sound.js";

export const $ = (selector, root = document) => root.querySelector(selector);
export const all = (selector, root = document) => [...root.querySelectorAll(selector)];
export const seconds = (value) => `${value.toFixed(1)} s`;

/** One player for all: who starts, stops the others. */
export const player = new Player(refresh);
const views = new Set();
let playing = null; // the view whose sound is heard

/** Player button, picture and cursor of one sound, in `root`. */
export class View {
  constructor(root, name, options) {
    this.root = root;
    this.name = name;
    this.frame = $(".picture", root);
    this.cursor = $(".cursor", root);
    this.button = $(".play", root);
    this.picture = new Picture($("canvas", root), options);
    this.picture.canvas.style.height = `${this.picture.height}px`;
    this.at = 0; // seconds
    this.frame.setAttribute("aria-label", `Position in ${name}`);
    this.button.addEventListener("click", () => this.toggle());
    this.frame.addEventListener("click", (event) => this.sound && this.play(this.picture.time(event.offsetX)));
    this.frame.addEventListener("keydown", (event) => this.#keys(event));
    this.sizes = new ResizeObserver(() => (this.picture.draw(), this.refresh()));
    this.sizes.observe(this.frame);
    views.add(this);
    this.refresh();
  }

  get sound() {
    return this.picture.sound;
  }

  /** Show a sound, or more of it. */
  show(sound) {
    this.picture.sound = sound;
    this.picture.draw();
    this.refresh();
  }

  play(from = this.at) {
    if (playing && playing !== this) playing.pause();
    playing = this;
    player.play(this.sound, from);
    requestAnimationFrame(tick);
  }

  pause() {
    if (playing !== this) return;
    this.at = player.position;
    player.stop();
  }

  toggle() {
    if (playing === this) this.pause();
    else if (this.sound) this.play();
  }

  refresh() {
    const here = playing === this;
    const label = here ? (player.waiting ? "Waiting for more" : "Pause") : "Play";
    this.button.className = `play ${here ? (player.waiting ? "waiting" : "playing") : ""}`;
    this.button.setAttribute("aria-label", `${label}: ${this.name}`);
    this.button.disabled = !this.sound;
    this.cursor.hidden = !this.sound || (!here && this.at === 0);
    if (!this.sound) return;
    const at = here ? player.position : this.at;
    this.cursor.style.transform = `translateX(${this.picture.place(at)}px)`;
    this.frame.setAttribute("aria-valuemax", this.sound.seconds.toFixed(1));
    this.frame.setAttribute("aria-valuenow", at.toFixed(1));
    this.frame.setAttribute("aria-valuetext", `${at.toFixed(1)} of ${this.sound.seconds.toFixed(1)} seconds`);
  }

  forget() {
    this.pause();
    this.sizes.disconnect();
    views.delete(this);
  }

  #keys(event) {
    if (!this.sound) return;
    const now = playing === this ? player.position : this.at;
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: this.sound.have / this.sound.rate }[event.key];
    if (event.key === " " || event.key === "Enter") this.toggle();
    else if (to === undefined) return;
    else {
      this.at = Math.min(Math.max(0, to), this.sound.seconds);
      if (playing === this) this.play();
      else this.refresh();
    }
    event.preventDefault();
  }
}

/** The player has started, waits, or has stopped. */
function refresh() {
  if (playing && !player.sound) {
    if (playing.at > playing.sound.seconds - 0.15) playing.at = 0;
    playing = null;
  }
  for (const view of views) view.refresh();
}

function tick() {
  if (!playing) return;
  player.feed();
  if (!playing) return;
  playing.at = player.position;
  playing.refresh();
  requestAnimationFrame(tick);
}

/** The system has changed from light to dark, or back. */
export function redraw() {
  for (const view of views) view.picture.draw();
}

/** Say what went wrong, in the words of who noticed; null: nothing. */
export function complain(error) {
  if (error?.name === "AbortError") return;
  const text = error ? error.message ?? String(error) : "";
  $("#error").textContent = text && text[0].toUpperCase() + text.slice(1);
  $("#error").hidden = !text;
  $("#locked").hidden = error?.status !== 401;
}

/** Look for the watermark and say so in `line`. */
export async function verdict(file, line) {
  line.textContent = "Looking for a watermark …";
  line.className = "verdict";
  const response = await ask("/v1/detect", { method: "POST", body: fileForm({ audio: file }) });
  const { watermark, synthetic_probability: likely, note } = await response.json();
  const sure = watermark.confidence > 0.9999 ? "over 99.99\u00a0%" : `${(100 * watermark.confidence).toFixed(2)}\u00a0%`;
  const who = watermark.payload === server.watermark ? "this model" : `audiolm (payload ${watermark.payload ?? "not legible"})`;
  line.classList.add(watermark.found ? "found" : "absent");
  line.textContent = watermark.found
    ? `Watermark found: generated by ${who} (${sure} sure).`
    : "No watermark found, which proves nothing; it takes about two seconds of marked speech.";
  // Where the model has a detector that needs no mark.
  if (typeof likely === "number") line.textContent += ` Synthetic by its sound: ${(100 * likely).toFixed(0)}\u00a0%${note ? ` (${note})` : ""}.`;
}
