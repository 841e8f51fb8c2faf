// What goes in: a recording from the microphone, a file, or an example.

import { ask, server } from "./api.js";
import { decode, record } from "./sound.js";
import { $, View, complain, player, seconds, verdict } from "./view.js";

/** Where a recording comes from: the microphone, a file, or an example. */
export class Source {
  constructor(name, legend) {
    this.root = $(`#${name}`);
    this.root.append($("#source").content.cloneNode(true));
    $("legend", this.root).textContent = legend;
    this.file = null;
    this.view = new View($(".chosen", this.root), "the recording", { tokens: false });
    this.turn = 0; // of what was chosen, so that what decodes slowly does not replace what came later
    const input = $("input[type=file]", this.root);
    $(".choose", this.root).addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      if (input.files[0]) this.choose(input.files[0], input.files[0].name);
      input.value = "";
    });
    $(".record", this.root).addEventListener("click", () => this.#record().catch(complain));
    $(".clear", this.root).addEventListener("click", () => {
      this.choose(null);
      $(".choose", this.root).focus();
    });
    $(".check", this.root).addEventListener("click", () => verdict(this.file, $(".verdict", this.root)).catch(complain));
    const drop = $("fieldset", this.root);
    for (const kind of ["dragover", "dragleave", "drop"]) {
      drop.addEventListener(kind, (event) => drop.classList.toggle("over", kind === "dragover" && event.dataTransfer.items.length > 0));
    }
    drop.addEventListener("drop", (event) => {
      const file = event.dataTransfer.files[0];
      if (file) this.choose(file, file.name);
    });
  }

  offer(examples) {
    const line = $(".examples", this.root);
    line.hidden = !examples.length;
    line.replaceChildren("Drop one, or try");
    for (const example of examples) {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: example.name });
      button.title = seconds(example.seconds);
      button.addEventListener("click", () =>
        ask(example.url)
          .then((response) => response.blob())
          .then((blob) => this.choose(new File([blob], example.url.split("/").pop()), example.name))
          .catch(complain),
      );
      line.append(button);
    }
  }

  async choose(file, name = "") {
    const turn = ++this.turn;
    complain(null);
    this.view.pause();
    this.view.at = 0;
    this.view.show(null);
    this.file = file;
    this.name = name;
    $(".chosen", this.root).hidden = !file;
    $(".verdict", this.root).textContent = "";
    $("strong", this.root).textContent = name;
    $(".length", this.root).textContent = "";
    if (!file) return;
    let sound = null;
    try {
      sound = await decode(file, server.sample_rate);
    } catch {
      // What a browser cannot decode the server may well read.
    }
    if (turn !== this.turn) return;
    $(".length", this.root).textContent = sound ? seconds(sound.seconds) : "cannot be shown here; the server may read it";
    this.view.show(sound);
  }

  async #record() {
    const [button, meter] = [$(".record", this.root), $("meter", this.root)];
    if (this.stop) return this.stop();
    complain(null);
    player.stop();
    button.disabled = true;
    let finish;
    try {
      if (!navigator.mediaDevices) throw new Error("Recording needs https, or this machine's own address (localhost).");
      finish = await record((level, passed) => {
        meter.value = Math.sqrt(level);
        $("span", button).textContent = `Stop, ${seconds(passed)}`;
        if (passed > server.max_sound_seconds - 1) this.stop?.();
      });
    } catch (error) {
      const known = { NotAllowedError: "The browser keeps the microphone from this page; allow it beside the address.", NotFoundError: "There is no microphone." };
      throw new Error(known[error.name] ?? error.message);
    } finally {
      button.disabled = false;
    }
    this.stop = async () => {
      this.stop = null;
      button.classList.remove("on");
      $("span", button).textContent = "Record";
      meter.hidden = true;
      await this.choose(await finish(), "recording");
    };
    button.classList.add("on");
    meter.hidden = false;
  }
}
