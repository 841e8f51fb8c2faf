// The picture of a sound on a canvas: waveform, spectrogram and tokens over one axis of time, grey where the prompt ends.

const WINDOW = 512; // samples of a spectrum
const ROWS = 96; // of the spectrogram, evenly spaced in mel
const RANGE = 70; // dB
const EDGE = 9; // CSS pixels right of the picture, for half a number
const TICKS = [500, 1000, 2000, 4000, 8000];

const mel = (hertz) => 2595 * Math.log10(1 + hertz / 700);
const hertz = (mels) => 700 * (10 ** (mels / 2595) - 1);
const hann = Float32Array.from({ length: WINDOW }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / WINDOW));

/** In-place FFT, radix 2, of WINDOW values. */
function fft(real, imag) {
  for (let i = 1, j = 0; i < WINDOW; i++) {
    let bit = WINDOW >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [real[i], real[j]] = [real[j], real[i]];
      [imag[i], imag[j]] = [imag[j], imag[i]];
    }
  }
  for (let size = 2; size <= WINDOW; size *= 2) {
    const half = size / 2;
    for (let k = 0; k < half; k++) {
      const [c, s] = [Math.cos((-2 * Math.PI * k) / size), Math.sin((-2 * Math.PI * k) / size)];
      for (let a = k; a < WINDOW; a += size) {
        const b = a + half;
        const [x, y] = [real[b] * c - imag[b] * s, real[b] * s + imag[b] * c];
        [real[b], imag[b]] = [real[a] - x, imag[a] - y];
        [real[a], imag[a]] = [real[a] + x, imag[a] + y];
      }
    }
  }
}

/** Decibels of ROWS mel bands around one sample. */
function column(sound, middle, into) {
  const real = new Float64Array(WINDOW);
  const imag = new Float64Array(WINDOW);
  const first = Math.round(middle) - WINDOW / 2;
  for (let i = 0; i < WINDOW; i++) real[i] = (sound.samples[first + i] ?? 0) * hann[i];
  fft(real, imag);
  const top = mel(Math.min(8000, sound.rate / 2));
  for (let row = 0; row < ROWS; row++) {
    const bin = Math.min((hertz((row / (ROWS - 1)) * top) / sound.rate) * WINDOW, WINDOW / 2 - 1e-6);
    const [low, part] = [Math.floor(bin), bin % 1];
    const power = (k) => real[k] ** 2 + imag[k] ** 2;
    into[row] = 10 * Math.log10((1 - part) * power(low) + part * power(low + 1) + 1e-10);
  }
}

/** The colours of the theme, from the style sheet. */
function theme() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(`--${name}`).trim();
  const rgb = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
  const stops = get("map").split(/\s+/).map(rgb);
  const map = Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((value, c) => value + (at - low) * (stops[low + 1][c] - value));
  });
  return { map, dark: get("scheme") === "dark", ...Object.fromEntries(["muted", "wave", "line", "rule", "soft"].map((n) => [n, get(n)])) };
}

/** A picture in `canvas`. Give it more of the sound, its tokens, or another size, and call `draw` again. */
export class Picture {
  constructor(canvas, { tokens = true } = {}) {
    this.canvas = canvas;
    this.withTokens = tokens; // and a spectrogram; else the waveform alone
    this.gutter = tokens ? 58 : 14; // CSS pixels left of the picture, for the labels
    this.sound = null;
    this.prompt = 0; // seconds
    this.tokens = null; // as /v1/tokenize answers
    this.coarse = 4; // levels
    this.columns = []; // of the spectrogram, those that are made
  }

  get height() {
    return this.withTokens ? 286 : 84;
  }

  /** CSS pixels from the left for a time, and back, as a share of the width. */
  place(seconds) {
    return this.gutter + (this.canvas.clientWidth - this.gutter - EDGE) * (seconds / this.sound.seconds);
  }

  time(x) {
    const share = (x - this.gutter) / (this.canvas.clientWidth - this.gutter - EDGE);
    return Math.min(1, Math.max(0, share)) * this.sound.seconds;
  }

  draw() {
    const { canvas, sound } = this;
    const width = canvas.clientWidth;
    if (!sound || width <= this.gutter + EDGE) return;
    const scale = Math.min(2, window.devicePixelRatio || 1);
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(this.height * scale);
    const paint = canvas.getContext("2d");
    paint.scale(scale, scale);
    this.paint = paint;
    this.colours = theme();
    this.width = width - this.gutter - EDGE;
    paint.font = "11px system-ui, sans-serif";
    paint.textBaseline = "middle";
    if (!this.withTokens) {
      this.#wave(0, 64);
      this.#axis(64);
      return;
    }
    this.#wave(0, 66);
    this.#spectrogram(70, 104);
    this.#tokenRows(180, 84);
    this.#axis(266);
    if (this.prompt > 0 && this.prompt < sound.seconds) {
      const x = Math.round(this.place(this.prompt));
      paint.fillStyle = this.colours.line;
      paint.fillRect(x - 1, 0, 2, 264);
      paint.font = "10.5px system-ui, sans-serif";
      paint.fillStyle = this.colours.muted;
      paint.textAlign = "right";
      if (x - this.gutter > 46) paint.fillText("prompt", x - 6, 7);
      paint.textAlign = "left";
      if (width - x > 34) paint.fillText("new", x + 6, 7);
    }
  }

  #label(text, y, colour = this.colours.muted) {
    this.paint.fillStyle = colour;
    this.paint.textAlign = "right";
    this.paint.fillText(text, this.gutter - 8, y);
  }

  /** The extremes of each pixel's samples: grey what was given, in colour what is new. */
  #wave(top, height) {
    const { paint, sound, colours, width } = this;
    const middle = top + height / 2;
    let peak = 0.05;
    for (let i = 0; i < sound.have; i++) peak = Math.max(peak, Math.abs(sound.samples[i]));
    const size = (height / 2 - 2) / peak / (this.withTokens ? 1.12 : 1);
    paint.fillStyle = colours.rule;
    paint.fillRect(this.gutter, middle - 0.5, width, 1);
    const step = sound.samples.length / width / 2;
    for (let x = 0; x < 2 * width; x++) {
      const last = Math.min(sound.have, Math.max(Math.ceil((x + 1) * step), Math.floor(x * step) + 1));
      let [low, high] = [0, 0];
      for (let i = Math.floor(x * step); i < last; i++) {
        low = Math.min(low, sound.samples[i]);
        high = Math.max(high, sound.samples[i]);
      }
      if (high === low) continue;
      paint.fillStyle = x * step < this.prompt * sound.rate ? colours.muted : colours.wave;
      paint.fillRect(this.gutter + x / 2, middle - high * size, 0.5, Math.max(0.7, (high - low) * size));
    }
    if (this.withTokens) this.#label("wave", middle);
  }

  #spectrogram(top, height) {
    const { paint, sound, colours } = this;
    const count = Math.round(Math.min(1000, 2 * this.width));
    const step = sound.samples.length / count;
    const kept = this.columns;
    if (kept.step !== step || kept.sound !== sound) this.columns = Object.assign([], { step, sound });
    const ready = sound.done ? count : Math.floor((sound.have - WINDOW / 2) / step);
    while (this.columns.length < ready) {
      const next = new Float32Array(ROWS);
      column(sound, (this.columns.length + 0.5) * step, next);
      this.columns.push(next);
    }
    let loudest = -20;
    for (const each of this.columns) for (const value of each) loudest = Math.max(loudest, value);
    const image = new ImageData(count, ROWS);
    for (let x = 0; x < count; x++) {
      for (let row = 0; row < ROWS; row++) {
        const share = x < this.columns.length ? 1 - (loudest - this.columns[x][row]) / RANGE : 0;
        const colour = colours.map[Math.round(255 * Math.min(1, Math.max(0, share)))];
        image.data.set([...colour, 255], 4 * ((ROWS - 1 - row) * count + x));
      }
    }
    const small = new OffscreenCanvas(count, ROWS);
    small.getContext("2d").putImageData(image, 0, 0);
    paint.imageSmoothingQuality = "high";
    paint.drawImage(small, this.gutter, top, this.width, height);
    const highest = Math.min(8000, sound.rate / 2);
    for (const tick of TICKS.filter((each) => each <= highest)) {
      const y = top + height * (1 - mel(tick) / mel(highest));
      this.#label(tick === highest ? `${tick / 1000} kHz` : `${tick / 1000}`, Math.max(y, top + 5));
    }
  }

  /** A cell for each code: semantic ones in all hues, coarse in cool, fine in warm ones. */
  #tokenRows(top, height) {
    const { paint, tokens, colours, sound } = this;
    const levels = tokens?.acoustic.codes.length ?? 12;
    const coarse = Math.min(this.coarse, levels);
    const unit = (height - 20 - 8) / (levels + 0.6 * coarse); // coarse rows are the higher ones
    const parts = [
      ["semantic", tokens?.semantic, 0, 1, 20, [0, 360, 45]],
      ["coarse", tokens?.acoustic, 0, coarse, 1.6 * unit, [165, 265, 42]],
      ["fine", tokens?.acoustic, coarse, levels, unit, [5, 60, 38]],
    ];
    let y = top;
    for (const [name, kind, first, last, row, [from, to, saturation]] of parts) {
      if (last <= first) continue;
      this.#label(name, y + ((last - first) * row) / 2);
      paint.fillStyle = colours.soft;
      if (!kind) paint.fillRect(this.gutter, y, this.width, (last - first) * row);
      for (let level = first; kind && level < last; level++, y += row) {
        const codes = kind.codes[level];
        for (let at = 0; at < codes.length; ) {
          let end = at + 1; // what repeats is one cell
          while (end < codes.length && codes[end] === codes[at]) end++;
          const chance = (codes[at] * 0.618034 + level * 0.13) % 1; // neighbouring numbers, distant colours
          const light = (colours.dark ? 34 : 58) + 22 * ((codes[at] * 0.754878) % 1);
          paint.fillStyle = `hsl(${from + (to - from) * chance} ${saturation}% ${light}%)`;
          const [left, right] = [at, end].map((frame) => this.place(Math.min(frame / kind.frame_rate, sound.seconds)));
          paint.fillRect(left, y, right - left - (right - left > 4 ? 0.6 : 0), row - (row > 4 ? 0.5 : 0));
          at = end;
        }
      }
      if (!kind) y += (last - first) * row;
      y += 4;
    }
  }

  #axis(top) {
    const { paint, sound, colours, width } = this;
    const step = [0.2, 0.5, 1, 2, 5, 10, 20, 60].find((each) => (each / sound.seconds) * width >= 38) ?? 120;
    paint.textAlign = "center";
    for (let second = 0; second <= sound.seconds + 1e-6; second += step) {
      const x = this.place(second);
      paint.fillStyle = colours.rule;
      paint.fillRect(Math.round(x), top, 1, 4);
      paint.fillStyle = colours.muted;
      paint.fillText(`${+second.toFixed(1)}`, x, top + 12);
    }
    if (this.withTokens) this.#label("s", top + 12);
  }
}
