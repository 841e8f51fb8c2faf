// What comes out: a sound that is made, from its first block to its tokens and its watermark.

import { ask, fileForm, server } from "./api.js";
import { receive } from "./sound.js";
import { $, View, player, seconds, verdict } from "./view.js";

/** One sound, in a card of its own; `title` says what it is, `details` of what and by which seed. */
export class Take {
  constructor(title, details, file) {
    this.name = `${title} ${details}`;
    this.file = file; // its name, once it is downloaded
    this.root = $("#take").content.cloneNode(true).firstElementChild;
    this.root.setAttribute("aria-label", this.name);
    $("h2", this.root).textContent = title;
    $(".details", this.root).textContent = `${details} · `;
    this.clear = $(".clear", this.root);
    this.clear.setAttribute("aria-label", `Remove: ${this.name}`);
    this.clear.addEventListener("click", () => {
      const next = this.root.nextElementSibling ?? this.root.previousElementSibling;
      this.remove();
      (next?.classList.contains("take") ? next : $("#go")).focus();
    });
    this.clear.hidden = true;
    this.view = new View(this.root, this.name);
    this.#say("waiting");
  }

  #say(text) {
    $(".length", this.root).textContent = text;
  }

  /** Ask for it, show and (if `live`) play it while it comes. */
  async make(path, files, live, signal, told) {
    this.root.classList.add("busy");
    this.#say("making …");
    const body = Object.keys(files).length ? fileForm(files) : undefined;
    const response = await ask(path, { method: "POST", body, signal });
    this.view.picture.prompt = Number(response.headers.get("X-AudioLM-Prompt-Seconds") ?? 0);
    this.view.picture.coarse = server.levels?.fine?.[0] ?? server.levels?.coarse?.[1] ?? 4;
    let heard = !live;
    const { sound, error } = await receive(response, (sound) => {
      this.view.show(sound);
      this.#say(`${(sound.have / sound.rate).toFixed(1)} of ${seconds(sound.seconds)}`);
      if (!heard) this.view.play();
      heard = true;
      player.feed();
      told(sound.have / sound.samples.length);
    });
    this.view.show(sound);
    player.feed();
    this.#say(error ? `${seconds(sound.seconds)}, stopped` : seconds(sound.seconds));
    const save = $(".save", this.root);
    Object.assign(save, { href: URL.createObjectURL(sound.file), download: this.file, hidden: false });
    save.setAttribute("aria-label", `Download: ${this.name}`);
    this.clear.hidden = false;
    this.root.classList.remove("busy");
    this.#look(sound);
    if (error) throw error;
  }

  /** Its tokens and its watermark. */
  async #look(sound) {
    const line = $(".verdict", this.root);
    try {
      if (sound.seconds < 0.1) return;
      const response = await ask("/v1/tokenize", { method: "POST", body: fileForm({ audio: sound.file }) });
      this.view.picture.tokens = await response.json();
      this.view.show(sound);
      await verdict(sound.file, line);
    } catch (error) {
      line.textContent = error.message;
      line.className = "verdict absent";
    }
  }

  remove() {
    this.view.forget();
    if ($(".save", this.root).href) URL.revokeObjectURL($(".save", this.root).href);
    this.root.remove();
    $("#empty").hidden = $(".take") !== null;
  }
}
