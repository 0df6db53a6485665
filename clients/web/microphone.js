/** The person's microphone: asked for when it is wanted, and let go of when it is not. */

/** Without them the avatar would hear itself. */
const WANTED = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };
/** The server takes no more. */
const MOST_HZ = 48_000;
const LEVEL_SAMPLES = 1024;
/** A voice close to the microphone. */
const LOUD = 0.2;

/** Has the device's own rate: some browsers take a microphone at no other. @type {AudioContext | null} */
let context = null;

function audio() {
  if (context) return context;
  context = new AudioContext();
  if (context.sampleRate <= MOST_HZ) return context;
  context.close();
  context = new AudioContext({ sampleRate: MOST_HZ });
  return context;
}

/** Of what `capture` gives. */
export const microphoneHz = () => audio().sampleRate;

export class Microphone {
  #stream;
  #analyser;
  #samples = new Float32Array(LEVEL_SAMPLES);

  /** @param {MediaStream} stream */
  constructor(stream) {
    this.#stream = stream;
    this.#analyser = new AnalyserNode(audio(), { fftSize: LEVEL_SAMPLES });
    audio().createMediaStreamSource(stream).connect(this.#analyser);
  }

  /**
   * Asks the person, the first time.
   * @returns {Promise<Microphone>} throws where there is none, or none is given
   */
  static async open() {
    // Only pages that came over HTTPS, or from this machine, have devices.
    if (!navigator.mediaDevices) throw new DOMException("the page did not come over HTTPS", "SecurityError");
    const stream = await navigator.mediaDevices.getUserMedia({ audio: WANTED });
    await audio().resume();
    return new Microphone(stream);
  }

  get track() {
    return this.#stream.getAudioTracks()[0];
  }

  /** 0 to 1. */
  get level() {
    this.#analyser.getFloatTimeDomainData(this.#samples);
    return Math.min(1, loudness(this.#samples) / LOUD);
  }

  close() {
    for (const track of this.#stream.getTracks()) track.stop();
    this.#analyser.disconnect();
  }
}

/** Root of the mean square. @param {Float32Array} samples */
export function loudness(samples) {
  return Math.sqrt(samples.reduce((sum, each) => sum + each * each, 0) / samples.length);
}

/**
 * @param {MediaStreamTrack} track of a microphone
 * @param {(pcm: ArrayBuffer) => void} take 20 ms of it, PCM s16le in one channel
 * @returns {Promise<() => void>} ends it
 */
export async function capture(track, take) {
  await audio().audioWorklet.addModule(new URL("capture.js", import.meta.url));
  const source = audio().createMediaStreamSource(new MediaStream([track]));
  const node = new AudioWorkletNode(audio(), "capture", { channelCount: 1, channelCountMode: "explicit" });
  node.port.onmessage = ({ data }) => take(data);
  // It gives out silence; what leads nowhere is not run.
  source.connect(node).connect(audio().destination);
  return () => {
    node.port.onmessage = null;
    source.disconnect();
    node.disconnect();
  };
}
