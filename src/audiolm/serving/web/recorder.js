// The microphone's samples, mixed down to mono, in pieces of about 50 ms. Runs in the browser's audio thread.

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.held = [];
  }

  process([channels]) {
    if (channels.length) {
      const mono = new Float32Array(channels[0].length);
      for (const channel of channels) channel.forEach((value, i) => (mono[i] += value / channels.length));
      this.held.push(...mono);
    }
    if (this.held.length >= sampleRate / 20) {
      this.port.postMessage(new Float32Array(this.held));
      this.held = [];
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
