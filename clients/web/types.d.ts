/** What travels between the page and the server (protocol version 1), and what the page's modules hand each other. */

export interface Student {
  name: string;
  fps: number;
  width: number;
  height: number;
  /** KeyboardEvent.code of every key that the student understands. */
  keys: string[];
  /** Who it can be; empty when there is nobody to choose. */
  identities: string[];
  /** It can be whoever a picture shows. */
  reference: boolean;
  /** Sound drives it, in place of keys: an avatar. */
  speech: boolean;
}

/** Answer to `POST /v1/sessions`; `token` is the bearer token of every other route. */
export interface Session {
  id: string;
  token: string;
  seed: number;
  student: Student;
  /** STUN and TURN servers for its WebRTC links, credentials included. */
  ice_servers: RTCIceServer[];
  /** What it was asked for. */
  wish: Wish;
}

/** What a new session should be like; the server chooses the rest. */
export interface Wish {
  student?: string;
  seed?: number;
  identity?: string;
  /** A picture of whom it is to be instead, in base64. */
  reference?: string;
}

/** The body of every HTTP error, and the control message of type `error`. */
export interface ErrorBody {
  code: string;
  message: string;
  retryable: boolean;
}

/** `seq` counts inputs and releases from 1; a ping carries the last one, 0 before the first. */
export type ClientMessage =
  | { type: "hello"; version: number; token: string; video: string[]; sound: boolean; microphone_hz?: number }
  | { type: "input"; seq: number; code: string; down: boolean; held: string[]; t: number }
  | { type: "release"; seq: number; t: number }
  | { type: "ping"; seq: number; held: string[]; t: number }
  | { type: "pause" }
  | { type: "resume" }
  | { type: "bye" };

export interface Ready {
  type: "ready";
  version: number;
  session: string;
  student: string;
  fps: number;
  width: number;
  height: number;
  keys: string[];
  frame: number;
  generation: number;
}

/**
 * Names the first frame that shows the input or release `seq`; `rtp` is that frame's RTP timestamp, null on a WebSocket.
 * server_ms: from the server's receipt of the message to the frame's hand-over.
 */
export interface Ack {
  type: "ack";
  seq: number;
  t: number;
  frame: number;
  pts_us: number;
  rtp: number | null;
  server_ms: number;
}

/** server_ms: that the server took to answer. */
export interface Pong {
  type: "pong";
  t: number;
  server_ms: number;
}

export interface Status {
  type: "status";
  frame: number;
  fps: number;
  step_ms: number;
  steps: number;
  dropped: number;
  epoch: number;
  generation: number;
}

export type ServerMessage =
  | Ready
  | Ack
  | Pong
  | Status
  | { type: "epoch"; n0: number; t0_us: number; fps: number; generation: number }
  | { type: "paused" }
  | { type: "resumed" }
  | ({ type: "error" } & ErrorBody);

/**
 * A frame on the screen. mark: its RTP timestamp (WebRTC) or number (WebSocket). at: when, on performance.now()'s clock.
 * ptsMs: its time on the server's media clock, null where the link does not carry it (WebRTC).
 */
export interface Shown {
  mark: number;
  at: number;
  ptsMs: number | null;
}

/** Counters of one link since it opened. */
export interface Sample {
  framesDecoded: number;
  bytes: number;
  freezes: number;
  freezeSeconds: number;
}

export interface LinkEvents {
  message(message: ServerMessage): void;
  shown(shown: Shown): void;
}

/** A point in a stream: nothing before it is meant any more. */
export interface Moment {
  generation: number;
  frame: number;
}

export type TransportName = "webrtc" | "websocket";

/** One open connection that carries the picture one way and control messages both ways. */
export interface Link {
  readonly transport: TransportName;
  /** Resolves once, with the reason, when the link is lost; never when `close` was called. */
  readonly lost: Promise<Error>;
  send(text: string): void;
  sample(): Promise<Sample>;
  close(): void;
  /** Of an avatar. */
  readonly voice: Voice | null;
}

/** The sound of a link, both ways. */
export interface Voice {
  /** How loud the avatar is now, heard or not: 0 to 1. */
  readonly level: number;
  /** The person's microphone, from now on; null: none. */
  speak(track: MediaStreamTrack | null): Promise<void>;
  /** Whether what the avatar says comes out of the loudspeaker; throws where the browser wants another click for it. */
  hear(heard: boolean): Promise<void>;
  /** It was interrupted: silent at once, until the server says which moment comes after. */
  hush(after: Promise<Moment>): void;
}

/** refused: the person or the browser gives none. */
export type MicrophoneState = "off" | "on" | "refused";

/** idle: nothing asked for yet. waiting: for a place or for the server. failed: until the person asks again. */
export type PlayerState =
  | "idle"
  | "connecting"
  | "playing"
  | "paused"
  | "reconnecting"
  | "waiting"
  | "failed";

/** Why the player waits or has stopped, for a person to read. */
export interface Trouble {
  /**
   * locked: the server wants an API key. limited: this person has had enough of something for now. restarting: the
   * server said so, and keeps the stream.
   */
  kind: "full" | "starting" | "restarting" | "limited" | "locked" | "unreachable" | "refused" | "interrupted";
  detail: string;
  /** Counts down to the next try; null when there is none. */
  seconds: number | null;
}

export interface Snapshot {
  state: PlayerState;
  trouble: Trouble | null;
  session: Session | null;
  transport: TransportName | null;
}

/** What `window.streamgen.stats()` returns; see main.js. */
export interface Stats {
  state: PlayerState;
  transport: TransportName | null;
  broke: string[];
  session: string | null;
  seed: number | null;
  fps: number;
  framesDecoded: number;
  freezes: number;
  freezeSeconds: number;
  firstFrameMs: number | null;
  inputToPhotonMs: number[];
  frameAgeMs: number | null;
  roundTripMs: number | null;
  bitrateKbps: number;
  frame: number | null;
  dropped: number;
  steps: number | null;
  stepMs: number | null;
  audioLevel: number;
  microphoneLevel: number;
  heard: boolean;
  microphone: MicrophoneState;
}

declare global {
  // What an AudioWorklet's module finds (Web Audio API, 1.32): lib.dom has nothing for it.
  const sampleRate: number;
  const AudioWorkletProcessor: { new (): { readonly port: MessagePort } };
  function registerProcessor(name: string, processor: { new (): { process(inputs: Float32Array[][]): boolean } }): void;

  interface Window {
    streamgen: { stats(): Stats };
  }
}
