// Sound in the browser: WAV bytes to samples and back, a sound that is still arriving, playing it without gaps, recording.

/** A mono sound that may still grow: `samples` is as long as it will be, of which the first `have` are there. */
export class Sound {
  constructor(rate, length = 0) {
    this.rate = rate; // Hz
    this.samples = new Float32Array(length);
    this.have = 0;
    this.done = false;
    this.pace = Infinity; // seconds of sound that come in a second
    this.file = null; // the same as a Blob, once it is done
  }

  get seconds() {
    return this.samples.length / this.rate;
  }

  /** No more will come: keep what is there. */
  finish(file = null) {
    const whole = this.have === this.samples.length;
    this.samples = this.samples.subarray(0, this.have);
    this.done = true;
    this.file = whole && file ? file : new Blob([encode(this.samples, this.rate)], { type: "audio/wav" });
  }
}

/** A 16-bit WAV file of mono samples. */
export function encode(samples, rate) {
  const bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((letter, i) => bytes.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  bytes.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  bytes.setUint32(16, 16, true);
  bytes.setUint16(20, 1, true);
  bytes.setUint16(22, 1, true);
  bytes.setUint32(24, rate, true);
  bytes.setUint32(28, 2 * rate, true);
  bytes.setUint16(32, 2, true);
  bytes.setUint16(34, 16, true);
  text(36, "data");
  bytes.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => {
    bytes.setInt16(44 + 2 * i, Math.max(-32768, Math.min(32767, Math.round(value * 32768))), true);
  });
  return bytes.buffer;
}

/** Where the samples of a WAV file begin, how many bytes they are and their rate; null while too little of it is there. */
function header(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let rate = 0;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const name = String.fromCharCode(...bytes.subarray(at, at + 4));
    const size = view.getUint32(at + 4, true);
    if (name === "data") return { first: at + 8, size, rate };
    if (name === "fmt " && at + 16 <= bytes.length) rate = view.getUint32(at + 12, true);
    at += 8 + size + (size % 2);
  }
  return null;
}

/**
 * Read a WAV answer (mono, 16 bits) while it comes; `grown(sound)` is called whenever there is more of it.
 * The sound is given back finished, also where the answer was broken off: then the error that did it is in `error`.
 */
export async function receive(response, grown) {
  const reader = response.body.getReader();
  let sound = null;
  let start = null;
  let bytes = new Uint8Array(0);
  let error = null;
  const began = performance.now();
  let atFirst = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const joined = new Uint8Array(bytes.length + value.length);
      joined.set(bytes);
      joined.set(value, bytes.length);
      bytes = joined;
      if (!start) {
        start = header(bytes);
        if (!start) continue;
        sound = new Sound(start.rate, start.size >> 1);
      }
      const view = new DataView(bytes.buffer);
      const before = sound.have;
      const have = Math.min(sound.samples.length, (bytes.length - start.first) >> 1);
      for (let i = sound.have; i < have; i++) sound.samples[i] = view.getInt16(start.first + 2 * i, true) / 32768;
      sound.have = have;
      if (have === before) continue;
      atFirst ||= have; // the prompt comes at once and says nothing of the pace
      if (have > atFirst) sound.pace = (1000 * (have - atFirst)) / sound.rate / (performance.now() - began);
      grown(sound);
    }
  } catch (broken) {
    error = broken;
  }
  const after = sound ? `after ${(sound.have / sound.rate).toFixed(1)} s` : "before the sound began";
  const short = !sound || sound.have < sound.samples.length;
  if (short && error?.name !== "AbortError") error = new Error(`The server broke off ${after}.`);
  if (!sound) throw error;
  sound.finish(new Blob([bytes], { type: "audio/wav" }));
  return { sound, error };
}

/** Any recording that the browser can decode, mixed down to mono at `rate`; the file stays what it is. */
export async function decode(file, rate) {
  const buffer = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
  const sound = new Sound(rate, buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    const samples = buffer.getChannelData(channel);
    for (let i = 0; i < samples.length; i++) sound.samples[i] += samples[i] / buffer.numberOfChannels;
  }
  sound.have = buffer.length;
  sound.done = true;
  sound.file = file;
  return sound;
}

/** Plays one sound at a time, also one that is still arriving: pieces are scheduled to the sample, one behind the other. */
export class Player {
  constructor(changed) {
    this.changed = changed; // called when it starts, waits, or stops
    this.sound = null;
    this.nodes = [];
  }

  /** To be called in an event handler: browsers let pages sound only after a click or a key. */
  unlock(rate) {
    if (this.context?.sampleRate !== rate) {
      this.context?.close();
      this.context = new AudioContext({ sampleRate: rate });
    }
    return this.context.resume();
  }

  play(sound, from = 0) {
    this.stop();
    this.unlock(sound.rate);
    this.sound = sound;
    this.next = Math.min(Math.round(from * sound.rate), Math.max(0, sound.have - 1)); // the next sample to be scheduled
    this.from = this.next;
    this.origin = null; // the context's time at which sample 0 was, or would have been, heard; null while waiting
    this.feed();
    this.changed();
  }

  stop() {
    for (const node of this.nodes) node.disconnect();
    this.nodes = [];
    if (!this.sound) return;
    this.sound = null;
    this.changed();
  }

  get waiting() {
    return this.sound !== null && this.origin === null;
  }

  /** Seconds into the sound. */
  get position() {
    if (this.origin === null) return this.next / this.sound.rate;
    const heard = this.context.currentTime - (this.context.outputLatency || 0) - this.origin;
    return Math.min(Math.max(heard, this.from / this.sound.rate), this.next / this.sound.rate);
  }

  /** More of the sound is there, or time has passed. */
  feed() {
    const { sound, context } = this;
    if (!sound) return;
    const now = context.currentTime;
    if (this.origin !== null && this.origin + this.next / sound.rate <= now) {
      if (sound.done && this.next >= sound.have) return this.stop();
      this.origin = null; // ran dry
      this.from = this.next;
      this.changed();
    }
    const ready = sound.have - this.next;
    if (this.origin === null) {
      if (!sound.done && ready / sound.rate < this.#reserve()) return;
      if (ready === 0) return this.stop();
      // On the grid of samples: between them the browser would interpolate.
      this.origin = Math.ceil((now + 0.05 - this.next / sound.rate) * sound.rate) / sound.rate;
      this.changed();
    }
    if (ready === 0) return;
    const buffer = context.createBuffer(1, ready, sound.rate);
    buffer.copyToChannel(sound.samples.subarray(this.next, sound.have), 0);
    const node = new AudioBufferSourceNode(context, { buffer });
    node.connect(context.destination);
    node.start(this.origin + this.next / sound.rate);
    this.nodes.push(node);
    this.next = sound.have;
  }

  /** Seconds that should lie ready before it starts: enough not to run dry, but nobody waits for long. */
  #reserve() {
    const left = this.sound.seconds - this.sound.have / this.sound.rate;
    return Math.min(2, Math.max(0.25, left * (1 / this.sound.pace - 1)));
  }
}

/** Record from the microphone until `stop()`, which gives a WAV Blob; `heard(level, seconds)` is told the loudest sample of each moment. */
export async function record(heard) {
  const plain = { echoCancellation: false, noiseSuppression: false, channelCount: 1 };
  const context = new AudioContext();
  let media;
  try {
    await context.audioWorklet.addModule("recorder.js"); // first, so that no microphone stays open if this fails
    media = await navigator.mediaDevices.getUserMedia({ audio: plain });
  } catch (error) {
    await context.close();
    throw error;
  }
  const node = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
  const parts = [];
  let length = 0;
  node.port.onmessage = ({ data }) => {
    parts.push(data);
    length += data.length;
    heard(data.reduce((most, value) => Math.max(most, Math.abs(value)), 0), length / context.sampleRate);
  };
  context.createMediaStreamSource(media).connect(node);
  await context.resume();
  return async function stop() {
    for (const track of media.getTracks()) track.stop();
    const rate = context.sampleRate;
    await context.close();
    const samples = new Float32Array(length);
    parts.reduce((at, part) => (samples.set(part, at), at + part.length), 0);
    return new Blob([encode(samples, rate)], { type: "audio/wav" });
  };
}
